"""Captions of the demo data set, drawn from a grammar that covers many wordings.

Facts of the clip (tempo, size, count) are mentioned only when they are true. ``rng`` is a numpy Generator.
"""
import re

from utils.demo import grammar

CHOICE, VERB, RULE = re.compile(r"\{([^{}]*)\}"), re.compile(r"<([a-z-]+)>"), re.compile(r"\b[A-Z]{2,}\b")

IRREGULAR = {"do": "does", "go": "goes", "be": "is"}
DOUBLED = {"step", "run", "jog", "hop", "clap", "squat", "spin", "sit", "skip", "get", "put", "hit", "jab",
           "sidestep", "side-step", "plod", "drop", "slap", "begin"}


def phrases_of(text):
    """{action id: [(phrase, side)]} of the grammar text; ``side`` is empty where the id has none."""
    table = {}
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            sides = ("left", "right") if "*" in name else ("",)
        phrases = [phrase.strip() for phrase in line.split(";") if phrase.strip()]
        for side in sides:
            table.setdefault(name.replace("*", side), []).extend((phrase, side) for phrase in phrases)
    return table


PHRASES = phrases_of(grammar.GRAMMAR)


def pick(items, rng):
    return items[int(rng.integers(len(items)))]


def expand(text, side, rng):
    """Resolve rules and alternatives; verbs stay marked."""
    fixed = {"SIDE": side, "CLOCK": "clockwise" if side == "right" else pick(grammar.COUNTERCLOCKWISE, rng),
             "POSS": "#"}
    while True:
        text, rules = RULE.subn(lambda m: fixed.get(m[0]) or grammar.RULES.get(m[0], m[0].lower()), text)
        text, choices = CHOICE.subn(lambda m: pick(m[1].split("|"), rng), text)
        if not rules and not choices:
            return re.sub(r"\ba (anti)", r"an \1", " ".join(text.split()))


def conjugate(verb, form):
    """``form``: "s" (third person), "ing" or "base"."""
    if form == "base":
        return verb
    if form == "s":
        if verb in IRREGULAR:
            return IRREGULAR[verb]
        if verb.endswith(("s", "sh", "ch", "x", "z")):
            return verb + "es"
        return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"
    if verb in DOUBLED:
        return verb + verb[-1] + "ing"
    return verb[:-1] + "ing" if verb.endswith("e") and not verb.endswith("ee") else verb + "ing"


def details(action, facts, rng):
    """At most two phrases about tempo, size and count of this clip, each sometimes left out."""
    options = []
    if facts.get("tempo"):
        options.append(grammar.TEMPO[facts["tempo"]])
    if facts.get("size"):
        sizes = [by_size for prefix, by_size in grammar.SIZES.items() if action.startswith(prefix)]
        options += [by_size[facts["size"]] for by_size in sizes[:1]]
    count = facts.get("count")
    if count and action != "clap":
        options.append(grammar.TIMES.get(count) or grammar.NUMBERS[count] + " times")
    return [expand(option, "", rng) for option in options if rng.random() < 0.45][:2]


def verb_phrase(action, facts, rng):
    """A phrase of the action with marked verbs, e.g. ``<raise> # left arm slowly``."""
    text, side = pick(PHRASES[action], rng)
    return " ".join([expand(text, side, rng)] + details(action, facts, rng))


def render(phrase, form, possessive):
    return VERB.sub(lambda m: conjugate(m[1], form), phrase).replace("#", possessive)


def sentence(actions, facts, rng):
    """One caption of a clip: ``actions`` (one or two ids, in order) and the facts of each."""
    subject = pick(grammar.SUBJECTS, rng)
    pronoun = next((p for p, nouns in grammar.PRONOUNS.items() if subject.split()[-1] in nouns), "they")
    finite = "base" if subject == "they" else "s"
    slots = {"s": subject, "p": pronoun, "is_": "are" if subject == "they" else "is"}
    for number, action, fact in zip(("", "2"), actions, facts):
        phrase = verb_phrase(action, fact, rng)
        for key, form in (("f", finite), ("pf", "base" if pronoun == "they" else "s"),
                          ("g", "ing"), ("b", "base")):
            slots[key + number] = render(phrase, form, grammar.POSSESSIVE[pronoun])
    text = pick(grammar.DOUBLE if len(actions) == 2 else grammar.SINGLE, rng).format(**slots)
    if subject == "they":
        text = text.replace("they starts", "they start").replace("they begins", "they begin")
    for name, objective in (("he", "him"), ("she", "her"), ("they", "them")):
        for verb in ("shows", "see"):
            text = text.replace(f"{verb} {name} ", f"{verb} {objective} ")
    bare = f"{subject} {slots['g']}"
    if subject in ("he", "she", "they") and text.startswith(bare):
        text = text.replace(bare, f"{subject} {slots['is_']} {slots['g']}")
    return text + "." * int(rng.random() < 0.3)


def captions_of(actions, facts, rng, count=3):
    """``count`` different captions."""
    found = []
    while len(found) < count:
        text = sentence(actions, facts, rng)
        if text not in found:
            found.append(text)
    return found


TAGS = {word: tag for tag, words in grammar.LEXICON.items() for word in words.split()}
VERBS = set(VERB.findall(grammar.GRAMMAR)) | {"start", "begin", "show", "do", "wave"}
LEMMAS = {conjugate(verb, form): verb for verb in VERBS for form in ("base", "s", "ing")}
LEMMAS.update(see="see", seen="see", shown="show")


def tokens_of(caption):
    """``word/POS`` tokens of a caption, verbs as lemmas."""
    tokens = []
    for word in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", caption.lower()):
        if word in TAGS:
            tokens.append(f"{word}/{TAGS[word]}")
        elif word in LEMMAS:
            tokens.append(f"{LEMMAS[word]}/VERB")
        else:
            tokens.append(f"{word}/{'ADV' if word.endswith('ly') else 'NOUN'}")
    return tokens


def caption_line(caption):
    """A line of a ``texts`` file: caption, tokens, and the tags 0.0 0.0 for the whole clip."""
    return f"{caption}#{' '.join(tokens_of(caption))}#0.0#0.0"
