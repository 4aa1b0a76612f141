// The vendors by name: where each one's submits go, and what one looks like.

const VENDORS = {
  modellix: {
    path: "/api/v1/kling/kling-v2.6-i2v",
    body: (image) => ({ prompt: "A lighthouse in a storm", image_url: image }),
  },
  dashscope: {
    path: "/api/v1/services/aigc/image2video/video-synthesis",
    body: (image, video) => ({
      model: "wan2.2-animate-mix",
      input: { image_url: image, video_url: video },
      parameters: { mode: "wan-std" },
    }),
    headers: { "x-dashscope-async": "enable" },
  },
  runway: {
    path: "/v1/image_to_video",
    body: (image) => ({ model: "gen4_turbo", promptImage: image, ratio: "1280:720" }),
  },
};

/** Where media for examples are: an emulated deployment says so in its description, no other one has any. */
const exampleMedia = (description) => description.info["x-example-media"];
