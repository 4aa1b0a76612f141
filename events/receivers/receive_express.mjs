// Verify a callback, keep it once, answer; the work comes after. SECRET=whsec_… node receive_express.mjs 8000
import { createHmac, timingSafeEqual } from "node:crypto";
import express from "express";

const key = Buffer.from(process.env.SECRET.replace("whsec_", ""), "base64");
const inbox = new Map(); // yours: a table whose key is the id; a worker goes through it
const equal = (a, b) => a.length === b.length && timingSafeEqual(a, b);
const app = express();
const raw = express.raw({ type: () => true, inflate: false, limit: "1mb" }); // before any express.json()

app.post("/hook", raw, (request, response) => {
  const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0); // none came
  const [id, sentAt, sent] = ["id", "timestamp", "signature"].map((name) => request.get(`webhook-${name}`) ?? "");
  const good = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${sentAt}.`).update(body).digest("base64"));
  const ours = sent.split(" ").some((signature) => equal(good, Buffer.from(signature)));
  const fresh = Math.abs(Date.now() / 1000 - Number(sentAt)) < 300;
  if (ours && fresh && !inbox.has(id)) {
    inbox.set(id, body);
    console.log(body.toString());
  }
  response.sendStatus(ours && fresh ? 204 : 401);
});
app.use((error, request, response, next) => response.sendStatus(error.status ?? 500)); // too long, broken off, packed
app.listen(Number(process.argv[2]));
