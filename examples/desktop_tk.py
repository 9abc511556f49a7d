"""A chat window on weblab_local and the standard library: it streams, stops, and never freezes.

    python examples/desktop_tk.py [MODEL]

MODEL is what `weblab_local.load` takes; without it, the bundled demo. Tk's thread draws and listens; the worker's waits
for the model. They meet in a queue that the window looks into 30 times a second.
"""

import queue
import sys
import threading
import tkinter as tk
from tkinter import ttk
from tkinter.scrolledtext import ScrolledText

from weblab_local import ChatSession, ReplyStream, SamplingParams, WeblabError, licence, load
from weblab_local.i18n import language_in_use

TEXTS = {
    "en": {"send": "Send", "stop": "Stop", "loading": "Loading the model …", "stopped": " [stopped]"},
    "ja": {"send": "送信", "stop": "停止", "loading": "モデルを読み込んでいます…", "stopped": " [停止しました]"},
}


class Worker(threading.Thread):
    """Loads the model, then answers one instruction after the other. What happens goes to `events`."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.events: queue.SimpleQueue[tuple[str, str | float]] = queue.SimpleQueue()
        self._model = model
        self._instructions: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._stream: ReplyStream | None = None

    def ask(self, instruction: str) -> None:
        self._stopped.clear()
        self._instructions.put(instruction)

    def stop(self) -> None:
        self._stopped.set()
        if (stream := self._stream) is not None:
            stream.cancel()

    def close(self) -> None:
        self.stop()
        self._instructions.put(None)
        self.join()

    def run(self) -> None:
        try:
            self.events.put(("licence", str(licence(self._model))))
            with load(self._model, on_progress=self._loaded) as engine:
                self.events.put(("ready", ""))
                chat = engine.chat(params=SamplingParams(temperature=0))
                while (instruction := self._instructions.get()) is not None:
                    self._answer(chat, instruction)
        except Exception as error:  # whatever it is belongs into the window
            self.events.put(("failed", str(error)))

    def _loaded(self, share: float) -> None:
        if self._stopped.is_set():  # by close()
            sys.exit()  # ends this thread, and the loading with it
        self.events.put(("progress", share))

    def _answer(self, chat: ChatSession, instruction: str) -> None:
        finish_reason = ""
        try:
            with chat.stream(instruction) as self._stream:
                if self._stopped.is_set():  # pressed before there was a stream
                    self._stream.cancel()
                for chunk in self._stream:
                    self.events.put(("text", chunk.text))
                finish_reason = self._stream.reply.finish_reason
        except WeblabError as error:  # such as an instruction that is too long; the next one may be fine
            self.events.put(("text", str(error)))
        self.events.put(("answered", finish_reason))


class Window(tk.Tk):
    """The transcript, a field to write in (Enter sends, Shift-Enter begins a line), two buttons, and the licence."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(className="weblab-local")
        self.worker, self.texts = worker, TEXTS[language_in_use()]
        self.transcript = ScrolledText(self, name="transcript", state="disabled", wrap="word", height=18, width=70)
        self.field = tk.Text(self, name="field", height=3, width=48)
        self.send_button = ttk.Button(self, name="send", text=self.texts["send"], command=self._send, state="disabled")
        self.stop_button = ttk.Button(self, name="stop", text=self.texts["stop"], command=worker.stop, state="disabled")
        self.progress = ttk.Progressbar(self, name="progress")
        self.note = ttk.Label(self, name="note", text=self.texts["loading"], wraplength=560)
        self.transcript.grid(row=0, columnspan=3, sticky="nsew")
        for column, widget in enumerate((self.field, self.send_button, self.stop_button)):
            widget.grid(row=1, column=column, sticky="nsew", padx=3, pady=6)
        self.progress.grid(row=2, columnspan=3, sticky="ew", padx=6)
        self.note.grid(row=3, columnspan=3, sticky="w", padx=6, pady=6)
        self.columnconfigure(0, weight=1)
        self.rowconfigure(0, weight=1)
        self.field.bind("<Return>", self._send)
        self.field.bind("<Shift-Return>", lambda _event: None)
        self.field.focus_set()
        self._listen()

    def _send(self, _event: object = None) -> str:
        instruction = self.field.get("1.0", "end").strip()
        if instruction and self.send_button.instate(["!disabled"]):
            self.field.delete("1.0", "end")
            self._show(f"> {instruction}\n")
            self._set_busy(True)
            self.worker.ask(instruction)
        return "break"

    def _listen(self) -> None:
        while not self.worker.events.empty():
            self._take(*self.worker.events.get())
        self.after(33, self._listen)

    def _take(self, event: str, value: str | float) -> None:
        if event == "progress":
            self.progress.configure(value=100 * float(value))
        elif event == "licence":
            self.note.configure(text=value)
        elif event == "ready":
            self.progress.grid_remove()
        elif event == "answered":
            self._show(f"{self.texts['stopped'] if value == 'cancelled' else ''}\n\n")
        else:
            self._show(str(value))
        if event in ("ready", "answered"):
            self._set_busy(False)

    def _show(self, text: str) -> None:
        self.transcript.configure(state="normal")
        self.transcript.insert("end", text)
        self.transcript.configure(state="disabled")
        self.transcript.see("end")

    def _set_busy(self, busy: bool) -> None:
        self.send_button.state(["disabled" if busy else "!disabled"])
        self.stop_button.state(["!disabled" if busy else "disabled"])


if __name__ == "__main__":
    worker = Worker(sys.argv[1] if len(sys.argv) > 1 else "demo")
    worker.start()
    try:
        Window(worker).mainloop()
    finally:
        worker.close()  # also in the middle of loading or of an answer
