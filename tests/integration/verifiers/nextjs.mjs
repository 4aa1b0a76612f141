// Calls a route handler as Next.js does: with a Request, and only where the module has a function for the method.
import { createServer } from "node:http";
import { Readable } from "node:stream";
import { pathToFileURL } from "node:url";

const [, , route, port] = process.argv;
const handlers = await import(pathToFileURL(route));

createServer(async (incoming, outgoing) => {
  const { method, url, headers } = incoming;
  if (!handlers[method]) return outgoing.writeHead(405, { connection: "close" }).end();
  const body = method === "GET" || method === "HEAD" ? undefined : Readable.toWeb(incoming);
  const request = new Request(`http://localhost${url}`, { method, headers, body, duplex: "half" });
  const answer = await handlers[method](request);
  outgoing.writeHead(answer.status, { ...Object.fromEntries(answer.headers), connection: "close" }).end();
}).listen(Number(port), "127.0.0.1");
