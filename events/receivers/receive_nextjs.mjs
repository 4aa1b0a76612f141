// Verify a callback, keep it once, answer; the work comes after. Save it as app/hook/route.js, with SECRET=whsec_… set.
import { createHmac, timingSafeEqual } from "node:crypto";

export const runtime = "nodejs";
const inbox = new Map(); // yours: a table whose key is the id; a worker goes through it
const equal = (a, b) => a.length === b.length && timingSafeEqual(a, b);
const answer = (status) => new Response(null, { status });

export async function POST(request) {
  const parts = [];
  try {
    let size = 0;
    for await (const part of request.body ?? []) { // the raw bytes: a callback has less than 1 MB
      if ((size += parts[parts.push(part) - 1].length) > 1e6) return answer(413);
    }
  } catch {
    return answer(400); // the sender went away half-way
  }
  const body = Buffer.concat(parts);
  const key = Buffer.from(process.env.SECRET.replace("whsec_", ""), "base64");
  const [id, sentAt, sent] = ["id", "timestamp", "signature"].map((name) => request.headers.get(`webhook-${name}`) ?? "");
  const good = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${sentAt}.`).update(body).digest("base64"));
  const ours = sent.split(" ").some((signature) => equal(good, Buffer.from(signature)));
  const fresh = Math.abs(Date.now() / 1000 - Number(sentAt)) < 300;
  if (ours && fresh && !inbox.has(id)) console.log((inbox.set(id, body), body.toString()));
  return answer(ours && fresh ? 204 : 401);
}
