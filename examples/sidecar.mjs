// An app in another language: weblab-local runs beside it as a process of its own, is asked once, and ends.
// Node's standard library only (18 or newer), and no connection but to this machine.
//
//     node examples/sidecar.mjs [MODEL] [INSTRUCTION]

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

const [model = "demo", instruction = "大規模言語モデルについて説明してください。"] = process.argv.slice(2);

try {
  await main();
} catch (error) {
  console.error(`sidecar.mjs: ${error.message}`);
  process.exitCode = 1;
}

async function main() {
  const sidecar = spawn("weblab-local", ["serve", "--model", model, "--port", "0", "--sidecar"], {
    stdio: ["pipe", "pipe", "inherit"], // what it has to say to people comes on stderr
  });
  const ended = once(sidecar, "exit"); // rejects when there is no such program
  try {
    await answer(JSON.parse(await firstLine(sidecar.stdout, ended)));
  } finally {
    sidecar.stdin.end(); // it ends by itself; also when this process is killed, which closes the pipe
    await ended;
  }
}

async function firstLine(stdout, ended) {
  const line = once(createInterface({ input: stdout }), "line");
  const code = ended.then(([code]) => Promise.reject(new Error(`weblab-local ended with ${code}`)));
  const [text] = await Promise.race([line, code]);
  code.catch(() => {}); // that it ends later is no error
  return text;
}

async function answer({ port, token, model }) {
  const messages = [{ role: "user", content: instruction }];
  const response = await fetch(`http://127.0.0.1:${port}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ model, messages, temperature: 0, stream: true }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  }
  process.stdout.write("\n");
}

// The JSON of a stream of server-sent events, one after the other.
async function* events(body) {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}
