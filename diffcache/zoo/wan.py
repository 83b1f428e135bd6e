"""tiny-wan: a small Wan text-to-video model for the real ``WanPipeline``; its prompts name one of four motions."""

from __future__ import annotations

MOTIONS: dict[str, tuple[str, ...]] = {
    "turns left": ("turns left", "the player turns left", "turning left", "a turn to the left", "rotates to the left"),
    "turns right": (
        "turns right",
        "the player turns right",
        "turning right",
        "a turn to the right",
        "rotates to the right",
    ),
    "walks forward": (
        "walks forward",
        "the player walks forward",
        "walking forward",
        "a walk ahead",
        "moves straight ahead",
    ),
    "walks backward": (
        "walks backward",
        "the player walks backward",
        "walking backward",
        "a walk backward",
        "moves straight back",
    ),
}
"""Motion to the prompts it was trained with; the first one is the motion's name."""

MAX_SEQUENCE_LENGTH = 16


def make_tokenizer():
    """The word-level tokenizer over every word of ``MOTIONS``: pad 0, end of text 1, unknown 2.

    The end token is always appended, so the empty prompt of classifier-free guidance is one token long.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for prompts in MOTIONS.values() for prompt in prompts for word in prompt.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_SEQUENCE_LENGTH, **special)
