"""Question and answer templates, filled with a phrase.

Questions and answers with [SEG] are those of the official training code (ByteDance/Sa2VA, `projects/sa2va/datasets`).
"""

from __future__ import annotations

from pydantic import Field, field_validator

from vesalius.config import Settings
from vesalius.errors import SettingError
from vesalius.models.families.chats import CHATS, DEFAULT_CHAT, ChatName

QUESTIONS = (
    "Please segment the {phrase} in this image.",
    "Can you segment the {phrase} in this image?",
    "What is {phrase} in this image? Please respond with segmentation mask.",
)
ANSWERS = ("Sure, [SEG].",)
ABSENT_ANSWERS = (
    "There is no {phrase} in this image.",
    "No, I see no {phrase} in this image.",
    "This image shows no {phrase}.",
)


class PromptTemplate(Settings):
    """Templates of a question about a phrase and of its answers."""

    chat: ChatName = DEFAULT_CHAT
    questions: tuple[str, ...] = Field(default=QUESTIONS, min_length=1)
    """Question templates, each with `{phrase}`. Prediction uses the first; training samples one."""
    answers: tuple[str, ...] = Field(default=ANSWERS, min_length=1)
    """Answer templates, each with `[SEG]` once. `answer: force` uses the first."""
    absent_answers: tuple[str, ...] = Field(default=ABSENT_ANSWERS, min_length=1)
    """Training answers for a phrase that is absent from the image, each with `{phrase}` and without `[SEG]`."""

    @field_validator("questions")
    @classmethod
    def _questions_hold_the_phrase(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [text for text in questions if text.count("{phrase}") != 1]:
            raise ValueError(f"a question must contain {{phrase}} once: {wrong[0]!r}")
        return questions

    @field_validator("answers")
    @classmethod
    def _answers_hold_seg(cls, answers: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [text for text in answers if text.count("[SEG]") != 1]:
            raise ValueError(f"an answer must contain [SEG] once: {wrong[0]!r}")
        return answers

    @field_validator("absent_answers")
    @classmethod
    def _absent_answers_name_the_phrase(cls, answers: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [text for text in answers if text.count("{phrase}") != 1 or "[SEG]" in text]:
            raise ValueError(f"an absent answer must contain {{phrase}} once, and no [SEG]: {wrong[0]!r}")
        return answers

    def ask(self, phrase: str, which: int = 0) -> str:
        """The question about a phrase. SettingError for an empty phrase."""
        if not phrase.strip():
            raise SettingError(
                'the prompt is empty; name what to segment, for example --prompt "blood vessel"',
                code="invalid_prompt",
                field="prompt",
            )
        return self.questions[which % len(self.questions)].replace("{phrase}", phrase.strip())

    def answer(self, which: int = 0) -> str:
        """The answer with [SEG]."""
        return self.answers[which % len(self.answers)]

    def deny(self, phrase: str, which: int = 0) -> str:
        """The answer for a phrase that is absent from the image."""
        # independent of the question that the same draw selects, so that all combinations occur
        which //= len(self.questions)
        return self.absent_answers[which % len(self.absent_answers)].replace("{phrase}", phrase.strip())

    def before_answer(self, question: str, image_text: str) -> str:
        """The text before the answer: the image on a line of its own, as in training, then the question."""
        return self.mark_up(f"{image_text}\n{question}")

    def mark_up(self, question: str) -> str:
        """A question in chat markup, up to the start of its answer."""
        return CHATS[self.chat].turn.replace("{question}", question)

    @property
    def stop(self) -> str:
        """The token that ends an answer."""
        return CHATS[self.chat].stop
