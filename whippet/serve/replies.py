"""One reply while it is made: events of the engine in, text that may be sent out."""

from __future__ import annotations

from collections.abc import Sequence

from whippet.chat.tokenizer import Tokenizer
from whippet.infer.requests import Drawn, Event, Finish
from whippet.infer.stopping import ReplyText


class GrowingReply:
    """The reply with the index ``index`` among those of an HTTP request. ``finish`` is None while it grows.

    ``pending``: tokens that were drawn and not yet sent, for their log-probabilities; ``take_pending`` empties it.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, stop: Sequence[str], prompt: Sequence[int]) -> None:
        self.index = index
        self.tokens = self.cached = 0
        self.finish: Finish | None = None
        self.pending: list[Drawn] = []
        self._text = ReplyText(tokenizer, stop, prompt)
        self._held = 0
        """Tokens since text was shown last."""

    @property
    def text(self) -> str:
        """Everything that may be shown so far."""
        return self._text.text

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the reply, so that the engine has to be told."""
        return self._text.stopped

    def take(self, event: Event) -> str:
        """Take what the engine tells; return the text that may be shown now."""
        if self.finish is not None:
            return ""  # the engine had drawn on before it was told of a stop text
        self.cached = max(self.cached, event.cached)
        shown = ""
        if event.drawn is not None:
            self.tokens += 1
            self.pending.append(event.drawn)
            shown = self._text.push(event.drawn.id)
            self._held = 0 if shown else self._held + 1
        if self._text.stopped:
            self.finish = "stop"
            # What was held back is the stop text, which is not part of the reply.
            del self.pending[len(self.pending) - self._held :]
        elif event.finish is not None:
            self.finish = event.finish
            shown += self._text.close()
        return shown

    def take_pending(self) -> list[Drawn]:
        """The tokens that were drawn since this was asked last."""
        drawn, self.pending = self.pending, []
        return drawn
