// The vendors by name: where each one's submits go, and what one looks like; the deployment says so itself.

const VENDORS = Object.fromEntries(/* vendors.json */ [].map((one) => [one.vendor, one]));

/** What a vendor's submit looks like, with these media in it. */
const exampleOf = (vendor, image, video) => {
  const media = { "{image}": image, "{video}": video };
  return JSON.parse(JSON.stringify(vendor.body), (_, value) => (typeof value === "string" ? (media[value] ?? value) : value));
};

/** Where media for examples are: an emulated deployment says so in its description, no other one has any. */
const exampleMedia = (description) => description.info["x-example-media"];
