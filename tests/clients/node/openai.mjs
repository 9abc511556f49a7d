// OpenAI's own client for Node.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { all, answer, key, model, Mountain, question, url } from "./asked.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const chat = { model, messages: [{ role: "user", content: question }], temperature: 0 };
const response = { model, input: question, temperature: 0 };

await answer({
  plain: {
    "chat.completions": async () => (await client.chat.completions.create(chat)).choices[0].message.content,
    responses: async () => (await client.responses.create(response)).output_text,
  },
  streamed: {
    "chat.completions": async () => {
      const chunks = await all(await client.chat.completions.create({ ...chat, stream: true }));
      return chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "");
    },
    responses: async () => {
      const events = await all(await client.responses.create({ ...response, stream: true }));
      return events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
    },
  },
  structured: {
    "chat.completions": async () => {
      const format = zodResponseFormat(Mountain, "mountain");
      return (await client.chat.completions.parse({ ...chat, response_format: format })).choices[0].message.parsed;
    },
    responses: async () => {
      const text = { format: zodTextFormat(Mountain, "mountain") };
      return (await client.responses.parse({ ...response, text })).output_parsed;
    },
  },
  other: {
    models: async () => (await all(client.models.list())).map((one) => one.id),
  },
});
