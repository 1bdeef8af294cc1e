"""How alike two texts are, from 0 to 1, each metric as its usual library has it.

The libraries of BLEU, GLEU and ROUGE take a third of a second or more to import, which the first text pays and not
every start of the API.
"""

from typing import Literal, assert_never

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from app.graders.failures import NotGraded

Metric = Literal["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]

MAX_CHARACTERS = 40_000
"""Of both texts together. Work grows with their product: beyond this, letters of Chinese keep the whole process, which
runs nothing else meanwhile, for seconds; within it each comparison takes some tenths of one."""


def similarity(metric: Metric, text: str, reference: str) -> float:
    """Of a text to what it should have been. Raises `NotGraded` for texts that are too long to compare."""
    if len(text) + len(reference) > MAX_CHARACTERS:
        raise NotGraded(
            f"A text and its reference have more than {MAX_CHARACTERS} characters to compare.", "other_error"
        )
    match metric:
        case "fuzzy_match":
            return fuzz.ratio(text, reference) / 100
        case "bleu":
            return _bleu(text, reference)
        case "gleu":
            return _gleu(text, reference)
        case "rouge_l":
            return _rouge_l(text, reference)
        case "rouge_1" | "rouge_2" | "rouge_3" | "rouge_4" | "rouge_5":
            return _rouge_n(text, reference, int(metric[-1]))
        case _:
            assert_never(metric)


def _bleu(text: str, reference: str) -> float:
    """Of a sentence: short texts are judged by the n-grams that they have."""
    from sacrebleu.metrics.bleu import BLEU

    return min(1.0, BLEU(effective_order=True).sentence_score(text, [reference]).score / 100)


def _gleu(text: str, reference: str) -> float:
    """Over words as whitespace parts them."""
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([reference.split()], text.split()))


def _rouge_n(text: str, reference: str, n: int) -> float:
    """F1, unstemmed. Letters and digits of ASCII are all that ROUGE's words have."""
    from rouge_score.rouge_scorer import RougeScorer

    kind = f"rouge{n}"
    return float(RougeScorer([kind]).score(reference, text)[kind].fmeasure)


def _rouge_l(text: str, reference: str) -> float:
    """ROUGE's words and F1; their longest common subsequence by bits, as rouge_score's table takes gigabytes."""
    from rouge_score.tokenize import tokenize

    words, wanted = tokenize(text, None), tokenize(reference, None)
    return 2 * LCSseq.similarity(words, wanted) / (len(words) + len(wanted)) if words and wanted else 0.0
