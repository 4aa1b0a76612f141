// What callers and receivers copy. Pure: texts alone, no element is made here.

const python = (value) =>
  JSON.stringify(value, null, 4).replace(/"(?:\\.|[^"\\])*"|\b(?:true|false|null)\b/g, (found) => {
    return { true: "True", false: "False", null: "None" }[found] ?? found;
  });
const indented = (text, by) => text.replaceAll("\n", `\n${by}`);
const lines = (all, by) => `\n${all.map((one) => `${by}${one},\n`).join("")}`;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a shell

/** Write a call `{method, url, key, body, isOpen}` in each language; the token is read from the environment. */
function callSamples(call) {
  return { curl: curlCall(call), Python: pythonCall(call), JavaScript: scriptCall(call) };
}

function curlCall({ method, url, key, body, isOpen }) {
  const parts = [
    `curl -sS${method === "POST" && !body ? " -X POST" : ""} ${url}`,
    !isOpen && '-H "Authorization: Bearer $TOKEN"',
    key && `-H ${quoted(`Idempotency-Key: ${key}`)}`,
    body && "-H 'Content-Type: application/json'",
    body && `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return parts.filter(Boolean).join(" \\\n  ");
}

function pythonCall({ method, url, key, body, isOpen }) {
  const headers = [
    !isOpen && `"Authorization": f"Bearer {os.environ['TOKEN']}"`,
    key && `"Idempotency-Key": ${JSON.stringify(key)}`,
  ].filter(Boolean);
  const text = [
    isOpen ? "import requests" : "import os, requests",
    "",
    `answer = requests.${method.toLowerCase()}(`,
    `    ${JSON.stringify(url)},`,
    headers.length > 0 && `    headers={${lines(headers, "        ")}    },`,
    body && `    json=${indented(python(body), "    ")},`,
    "    timeout=30,",
    ")",
    "print(answer.status_code, answer.text)",
  ];
  return text.filter((line) => line !== false && line !== undefined).join("\n");
}

function scriptCall({ method, url, key, body, isOpen }) {
  const headers = [
    !isOpen && "Authorization: `Bearer ${process.env.TOKEN}`",
    key && `"Idempotency-Key": ${JSON.stringify(key)}`,
    body && '"Content-Type": "application/json"',
  ].filter(Boolean);
  const options = [
    method !== "GET" && `  method: "${method}",`,
    headers.length > 0 && `  headers: {${lines(headers, "    ")}  },`,
    body && `  body: JSON.stringify(${indented(JSON.stringify(body, null, 2), "  ")}),`,
  ].filter(Boolean);
  const given = options.length > 0 ? `, {\n${options.join("\n")}\n}` : "";
  return `const answer = await fetch(${JSON.stringify(url)}${given});\nconsole.log(answer.status, await answer.text());`;
}

/** Write the function that receivers need; `fresh` is how many seconds a time stamp may be off. */
function verifySamples(fresh) {
  return {
    Python: `import base64, hashlib, hmac, time


def verify(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Tell whether a callback is ours and fresh; header names in lower case, the body as received. Never raises."""
    message, sent_at, sent = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    signed = f"{message}.{sent_at}.".encode(errors="surrogatepass") + body
    mac = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
    own = b"v1," + base64.b64encode(mac)
    ours = any(hmac.compare_digest(own, one.encode(errors="surrogatepass")) for one in sent.split())
    return ours and sent_at.isascii() and sent_at.isdecimal() and abs(time.time() - float(sent_at)) < ${fresh}`,
    JavaScript: `import { createHmac, timingSafeEqual } from "node:crypto";

/** Tell whether a callback is ours and fresh; header names in lower case, the body a Buffer as received. Never throws. */
export function verify(secret, headers, body) {
  const [id, sentAt, sent] = ["id", "timestamp", "signature"].map((name) => String(headers[\`webhook-\${name}\`] ?? ""));
  const key = Buffer.from(secret.replace("whsec_", ""), "base64");
  const mac = createHmac("sha256", key).update(\`\${id}.\${sentAt}.\`).update(body).digest("base64");
  const own = Buffer.from(\`v1,\${mac}\`);
  const equal = (other) => own.length === other.length && timingSafeEqual(own, other);
  const ours = sent.split(" ").some((one) => equal(Buffer.from(one)));
  return ours && Math.abs(Date.now() / 1000 - Number(sentAt)) < ${fresh};
}`,
  };
}

// How a framework gives the body as it was received: what was parsed and written again has another signature.
const RAW_BODIES = [
  ["Flask", "request.get_data()"],
  ["Django", "request.body", "in a view with `@csrf_exempt`"],
  ["FastAPI", "await request.body()"],
  ["Express", 'express.raw({ type: () => true })', "before any `express.json()`"],
  ["Next.js", "Buffer.from(await request.arrayBuffer())", "in a route handler"],
];
