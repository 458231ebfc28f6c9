"""The noise model: how somebody in a hurry types a number word.

Each letter of the word meets at most one mishap, drawn with the rates of ``Rates``:

- a **neighbour**: the finger lands on a key beside the right one (QWERTY; a keyboard without the ü gives u),
- a **drop**: the letter is missing,
- a **double**: the letter comes twice,
- a **swap**: the letter changes places with the one after it, and that was the mishap of both.

A word that loses every letter keeps its first: an empty text says nothing about typing.
The same seed gives the same text on every machine and Python: only ``random.Random.random`` is drawn from, the one
method of which Python promises that its sequence will not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

WORDS: dict[str, tuple[str, ...]] = {
    "english": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "german": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "spanish": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
}

NEIGHBOURS: dict[str, str] = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj", "i": "uojk",
    "o": "ipkl", "p": "ol", "a": "qwsz", "s": "weadzx", "d": "ersfxc", "f": "rtdgcv", "g": "tyfhvb", "h": "yugjbn",
    "j": "uihknm", "k": "iojlm", "l": "opk", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn",
    "n": "bhjm", "m": "njk", "ü": "u",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """The chance of each mishap, per letter. A last letter, with none to swap with, is typed as it should be."""

    neighbour: float = 0.16
    drop: float = 0.13
    double: float = 0.06
    swap: float = 0.10


def pick(options: Sequence[str], random: Random) -> str:
    """Draw one of the options, all equally likely."""
    return options[int(random.random() * len(options))]


def misspell(word: str, random: Random, rates: Rates) -> str:
    """Type a lower-case word badly: at least one letter, and possibly the word as it should be."""
    typed: list[str] = []
    position = 0
    while position < len(word):
        letter = word[position]
        following = word[position + 1 : position + 2]
        draw = random.random()
        if (draw := draw - rates.neighbour) < 0:
            typed.append(pick(NEIGHBOURS[letter], random))
        elif (draw := draw - rates.drop) < 0:
            pass
        elif (draw := draw - rates.double) < 0:
            typed.append(letter * 2)
        elif following and draw - rates.swap < 0:
            typed.append(following + letter)
            position += 1
        else:
            typed.append(letter)
        position += 1
    return "".join(typed) or word[0]


def badly_typed(digit: int, seed: str, rates: Rates) -> str:
    """Name a digit 0..9 in a language drawn at random, badly typed. The text depends on nothing but the arguments."""
    random = Random(seed)  # a text as seed goes through SHA-512, which no hash randomisation touches
    language = pick(tuple(WORDS), random)
    return misspell(WORDS[language][digit], random, rates)
