"""Questions of general knowledge with four answers each after a few solved ones, drawn from a seed and word lists."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

_CAPITALS = """
Albania:Tirana Algeria:Algiers Angola:Luanda Armenia:Yerevan Austria:Vienna Bahrain:Manama Belarus:Minsk
Belgium:Brussels Bulgaria:Sofia Canada:Ottawa Chile:Santiago China:Beijing Croatia:Zagreb Cuba:Havana Cyprus:Nicosia
Denmark:Copenhagen Ecuador:Quito Egypt:Cairo Estonia:Tallinn Ethiopia:Addis_Ababa Finland:Helsinki France:Paris
Germany:Berlin Ghana:Accra Greece:Athens Hungary:Budapest Iceland:Reykjavik India:New_Delhi Indonesia:Jakarta
Iran:Tehran Iraq:Baghdad Ireland:Dublin Italy:Rome Jamaica:Kingston Japan:Tokyo Kenya:Nairobi Latvia:Riga
Lebanon:Beirut Libya:Tripoli Lithuania:Vilnius Malta:Valletta Morocco:Rabat Nepal:Kathmandu Norway:Oslo
Pakistan:Islamabad Peru:Lima Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow Senegal:Dakar
Serbia:Belgrade Spain:Madrid Sudan:Khartoum Sweden:Stockholm Syria:Damascus Thailand:Bangkok Tunisia:Tunis
Turkey:Ankara Uganda:Kampala Ukraine:Kyiv Vietnam:Hanoi Zambia:Lusaka
"""
_KINDS = """
ant:insect apple:fruit banana:fruit bee:insect beetle:insect blue:color broccoli:vegetable butterfly:insect
cabbage:vegetable carp:fish carrot:vegetable cello:instrument cherry:fruit cod:fish copper:metal cow:mammal crow:bird
drum:instrument duck:bird eagle:bird fly:insect flute:instrument goose:bird grape:fruit green:color guitar:instrument
hammer:tool hawk:bird herring:fish horse:mammal iron:metal lead:metal lettuce:vegetable lion:mammal mango:fruit
mosquito:insect moth:insect onion:vegetable owl:bird parrot:bird peach:fruit pear:fruit piano:instrument pike:fish
pliers:tool purple:color rabbit:mammal red:color robin:bird saw:tool screwdriver:tool shark:fish nickel:metal
spinach:vegetable tin:metal trumpet:instrument tuna:fish violin:instrument wasp:insect whale:mammal wolf:mammal
wrench:tool yellow:color zinc:metal
"""
_OPPOSITES = """
above:below accept:refuse alive:dead always:never ancient:modern asleep:awake backward:forward bad:good begin:end
big:small bitter:sweet bottom:top buy:sell clean:dirty cold:hot cruel:kind dark:light day:night deep:shallow dry:wet
early:late east:west empty:full enemy:friend false:true far:near fast:slow first:last guilty:innocent happy:sad
hard:soft heavy:light high:low inside:outside laugh:cry left:right long:short lose:win loud:quiet many:few north:south
old:young open:closed peace:war poor:rich push:pull question:answer remember:forget rough:smooth sharp:blunt
strong:weak thick:thin ugly:beautiful up:down wide:narrow
"""
_SUMS = 60
_FIRST, _LAST = 11, 89  # the summands


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answers in the order they are given, and the place of the right one among them."""

    text: str
    answers: tuple[str, ...]
    right: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A beginning with solved questions, which all requests share, and the questions to answer."""

    prefix: str
    questions: list[Question]

    @classmethod
    def drawn(cls, count: int = 200, *, examples: int = 24, seed: int = 0, begin: str = "") -> Task:
        """`count` questions and as many solved ones as `examples` before each, no two alike; all begin with `begin`.

        ValueError where there are not so many.
        """
        draw = random.Random(seed)
        pool = list(_pool(draw))
        if count + examples > len(pool):
            raise ValueError(f"count + examples must be at most {len(pool)}, got {count} + {examples}")
        chosen = draw.sample(pool, count + examples)
        solved = [_context(question) + question.answers[question.right] for question in chosen[:examples]]
        return cls(prefix=begin + "".join(f"{text}\n\n" for text in solved), questions=chosen[examples:])

    @property
    def requests(self) -> list[tuple[str, str]]:
        """A context and a continuation for every answer of every question."""
        return [
            (self.prefix + _context(question), answer) for question in self.questions for answer in question.answers
        ]

    def accuracy(self, logprobs: Sequence[float]) -> float:
        """The share of questions whose right answer has the largest of its questions' log-probabilities.

        `logprobs` has one for every request, in their order.
        """
        scores = iter(logprobs)
        hits = 0
        for question in self.questions:
            own = [next(scores) for _ in question.answers]
            hits += own.index(max(own)) == question.right
        return hits / len(self.questions)


def _context(question: Question) -> str:
    return f"Question: {question.text}\nAnswer:"


def _pool(draw: random.Random) -> Iterator[Question]:
    """Every question there is, with wrong answers from its own topic."""
    yield from _topic(draw, "What is the capital of {}?", _CAPITALS)
    yield from _topic(draw, 'What kind of thing does the word "{}" name?', _KINDS)
    yield from _topic(draw, 'What is the opposite of "{}"?', _OPPOSITES)
    summands = [(a, b) for a in range(_FIRST, _LAST + 1) for b in range(_FIRST, _LAST + 1)]
    for a, b in draw.sample(summands, _SUMS):
        near = [a + b + step for step in (-20, -11, -10, -9, -1, 1, 9, 10, 11, 20)]
        yield _question(draw, f"What is {a} plus {b}?", str(a + b), [str(number) for number in near])


def _topic(draw: random.Random, template: str, listed: str) -> Iterator[Question]:
    facts = dict(entry.replace("_", " ").split(":") for entry in listed.split())
    answers = sorted(set(facts.values()))
    for thing, answer in facts.items():
        yield _question(draw, template.format(thing), answer, [other for other in answers if other != answer])


def _question(draw: random.Random, text: str, answer: str, others: Sequence[str]) -> Question:
    answers = [answer, *draw.sample(others, 3)]
    draw.shuffle(answers)
    return Question(text=text, answers=tuple(f" {one}" for one in answers), right=answers.index(answer))
