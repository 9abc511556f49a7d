"""Ollama's API, translated to the requests of OpenAI's: many desktop programs speak no other."""
