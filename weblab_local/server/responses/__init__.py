"""OpenAI's Responses API for text, translated to the requests of chat completions."""
