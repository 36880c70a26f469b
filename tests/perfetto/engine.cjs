// Perfetto's trace processor on the standard streams: requests in, replies out, as its RPC protocol frames them.
// Argument: the folder of Perfetto's web pages, which hold it compiled to WebAssembly.
"use strict";

const fs = require("fs");
const path = require("path");

const folder = process.argv[2];

// The compiled program lies beside the script, which asks for it by name.
class XMLHttpRequest {
  open(_, url) { this.file = path.join(folder, path.basename(url)); }
  send() { this.response = new Uint8Array(fs.readFileSync(this.file)).buffer; }
}

// What the script takes for a browser's worker; it must not see that this is Node.
const location = { href: "file:///" };
const worker = { location };
const browser = {
  self: worker,
  process: undefined,
  window: undefined,
  WorkerGlobalScope: class {},
  XMLHttpRequest,
  location,
  console: { log: () => {}, warn: (text) => process.stderr.write(`${text}\n`), error: console.error },
};
const script = fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8");
new Function(...Object.keys(browser), script)(...Object.values(browser));

const port = { postMessage: (reply) => fs.writeSync(1, reply) };
worker.onmessage({ data: port });
// It is ready behind the promises that are under way.
setTimeout(() => {
  process.stdin.on("data", (bytes) => port.onmessage({ data: new Uint8Array(bytes) }));
}, 0);
