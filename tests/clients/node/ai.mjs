// Vercel's AI SDK with its provider for servers such as this one.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, streamText } from "ai";
import { all, answer, key, model, Mountain, question, url } from "./asked.mjs";

const provider = createOpenAICompatible({
  name: "weblab",
  baseURL: url,
  apiKey: key,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const asked = { model: provider(model), prompt: question, temperature: 0, maxRetries: 0 };
const output = Output.object({ schema: Mountain });

await answer({
  plain: { generateText: async () => (await generateText(asked)).text },
  streamed: { streamText: () => all(streamText(asked).textStream) },
  structured: {
    "Output.object": async () => (await generateText({ ...asked, output })).output,
    generateObject: async () => (await generateObject({ ...asked, schema: Mountain })).object,
  },
  other: {
    partialOutputStream: async () => (await all(streamText({ ...asked, output }).partialOutputStream)).at(-1),
  },
});
