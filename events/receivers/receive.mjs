// Verify a callback, keep it once, answer; the work comes after. SECRET=whsec_… node receive.mjs 8000
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.SECRET.replace("whsec_", ""), "base64");
const inbox = new Map(); // yours: a table whose key is the id; a worker goes through it
const equal = (a, b) => a.length === b.length && timingSafeEqual(a, b);

createServer({ requestTimeout: 20_000 }, async (request, response) => {
  const short = request.method === "POST" && request.headers["content-length"] < 1e6; // as every callback is
  if (!short) return response.writeHead(400, { connection: "close" }).end();
  const body = Buffer.concat(await request.toArray().catch(() => [])); // nothing of a sender that goes away half-way
  const [id, sentAt, sent] = ["id", "timestamp", "signature"].map((name) => request.headers[`webhook-${name}`] ?? "");
  const good = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${sentAt}.`).update(body).digest("base64"));
  const ours = sent.split(" ").some((signature) => equal(good, Buffer.from(signature)));
  const fresh = Math.abs(Date.now() / 1000 - Number(sentAt)) < 300;
  if (ours && fresh && !inbox.has(id)) {
    inbox.set(id, body);
    console.log(body.toString());
  }
  response.writeHead(ours && fresh ? 204 : 401).end();
}).listen(Number(process.argv[2]));
