"""Word lists of the generated corpora and of the behavioural tasks, and what training never shows.

The lists are closed: the tokenizer of the embedded models turns every word of `single_token_words` into one
token, and the tasks draw their fillers from here. Everything that is held out of training is defined in this
module (`HELD_OUT_NAMES`, `held_out_start`, `held_out_year`) and in `mechatlas.corpus.templates` (the
indirect-object templates).
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Ada Adam Agnes Alan Albert Alma Amos Andrew Anna Anton Arthur Axel Barbara Basil Beatrice Bella Ben Bernard
    Bianca Boris Brenda Bruno Carla Carol Cecil Celia Clara Claude Conrad Cora Cyril Daisy Dana Daniel Dario
    Dennis Diana Dora Doris Edgar Edith Edwin Elena Elias Ella Elsa Emil Erica Ernest Esther Ethan Eva Felix
    Fiona Flora Frank Frida Gareth George Gerald Gina Gloria Greta Guido Gustav Hanna Harold Harriet Hector
    Helen Henry Herman Hilda Holly Hugo Ian Ida Igor Inga Irene Iris Isaac Ivan Jack Jacob Jane Jasper Jill
    Joan Joel Judith Jules Julia Karen Karl Kate Keith Klara Kurt Lars Laura Leo Leon Lily Linda Lorna Louis
    Lucia Luke Lydia Mabel Magda Marcus Maria Martin Matilda Max Mia Milo Mira Monica Moses Myra Nadia Naomi
    Ned Nell Nicholas Nina Noel Nora Norman Olga Oliver Omar Oscar Otto Patricia Paul Pedro Penny Philip Pia
    """
)
"""Given names that occur anywhere in training, indirect-object sentences included."""

HELD_OUT_NAMES = _words(
    """
    Quentin Rachel Ralph Ramona Raymond Rita Robert Rosa Rupert Ruth Sally Samuel Selma Simon Sofia Stella
    Stephen Susan Sylvia Tamara Theo Thomas Tilda Tobias Ursula Vera Victor Viola Walter Wanda Wendy Wilma
    Xenia Yolanda Yuri Zelda
    """
)
"""Given names that occur in training, but never in an indirect-object sentence."""

MONTHS = _words(
    "January February March April May June July August September October November December"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBER_WORDS = _words("one two three four five six seven eight nine ten eleven twelve")
NUMERALS = tuple(str(n) for n in range(1, 13))
LETTERS = _words("A B C D E F G H I J K L M N O P Q R S T U V W X Y Z")

SEQUENCES = {
    "numerals": NUMERALS,
    "numwords": NUMBER_WORDS,
    "months": MONTHS,
    "days": DAYS,
    "letters": LETTERS,
}
"""Ordered members of each sequence class."""

CYCLIC = frozenset({"days"})
"""Classes whose last member is followed by the first, in training and in the tasks."""

FRAMES = _words("done lost born")
"""Verbs of the continuation frames, as in ``Kettle lost in three.``; ``born`` takes names as subjects."""

SUBJECTS = _words(
    """
    Anchor Apple Arrow Basket Bell Boat Book Bottle Box Bridge Bucket Candle Card Chair Clock Coat Cup Desk Door
    Drum Fan Flag Fork Gate Glove Hammer Hat Jar Kettle Key Kite Ladder Lamp Lock Map Mask Mirror Nail Needle
    Paper Pen Pipe Plate Pot Ring Rope Saddle Shoe Spoon Stone Table Tent Ticket Tower Train Tree Van Wagon
    Wheel Window
    """
)
"""Capitalised common nouns that open a continuation clause."""

PLACES = _words(
    """
    school garden market station library harbour church museum theatre bakery hospital factory castle river
    forest beach office kitchen farm village park bank hotel cinema stadium temple mill court dock fair
    """
)

OBJECTS = _words(
    """
    book lamp key ring map coat letter basket ticket flute ball hat knife drum mirror bottle clock parcel
    candle ladder rope shell coin card brush kettle scarf photograph medal violin hammer blanket
    """
)

YEAR_EVENTS = _words(
    """
    war siege strike drought reign treaty famine voyage trial plague boom ban truce project festival campaign
    """
)
"""Nouns of the greater-than sentence ``The war lasted from the year 1732 to the year 17``."""

NOUNS = _words(
    """
    bridge road wall tower council library market harbour mill church school valley hill lake island forest
    army fleet crew guild society company journal newspaper novel poem painting statue engine machine factory
    railway tunnel canal bank tax law charter election debate committee report survey census harvest crop
    orchard vineyard cattle sheep horse falcon heron beetle orchid lichen mineral copper silver salt timber
    granite sandstone marble glass pottery textile leather instrument orchestra choir symphony melody dialect
    alphabet manuscript inscription archive museum exhibition laboratory experiment hypothesis theorem equation
    telescope microscope comet eclipse volcano glacier earthquake hurricane flood drought migration settlement
    colony province district parish monastery cathedral fortress garrison regiment expedition merchant sailor
    farmer teacher surgeon architect engineer magistrate bishop apprentice widow orphan printer weaver
    """
)

ADJECTIVES = _words(
    """
    old new large small long short early late northern southern eastern western royal public private local
    famous obscure wealthy poor narrow wide steep shallow deep quiet crowded wooden iron stone golden ancient
    modern medieval industrial agricultural maritime ceremonial provisional permanent temporary elaborate
    austere fragile durable reliable controversial celebrated neglected abandoned restored fortified
    mountainous fertile barren humid temperate volcanic coastal remote prosperous independent autonomous
    democratic hereditary scientific philosophical experimental anonymous bilingual cylindrical rectangular
    """
)

VERBS_PAST = _words(
    """
    built crossed described visited opened closed bought sold moved kept found left changed joined reached
    destroyed repaired replaced extended painted recorded measured studied published translated criticised
    praised inherited surrendered defended captured governed administered surveyed excavated catalogued
    financed commissioned dismantled renovated photographed investigated discovered abandoned celebrated
    """
)

ADVERBS = _words(
    """
    slowly quickly often rarely again soon later finally officially briefly secretly reluctantly gradually
    apparently eventually repeatedly unexpectedly successfully
    """
)

SYLLABLES_START = _words(
    "Kar Vel Mos Tor Bry Dun Hal Lin Mar Nor Os Per Ros Sten Ul Wen Zar Gre Fal Cas"
)
SYLLABLES_MIDDLE = _words("ve lo ri na do mi ste ga tho be ran del quo shi bu")
SYLLABLES_END = _words("lund ria burg stad mouth ford via nesk grad tal holm wick rode mark zin")

CODE_SYMBOLS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"


def held_out_start(class_name: str, frame: str, start: int) -> bool:
    """Tell whether training never continues this class in this frame from the member with index ``start``.

    A start is the index of the first of the four shown members; the fifth is the answer. About a quarter of
    the starts of each class and frame are held out, others in each frame, so that what is asked of the model
    on them has to come from the other frames and from sequences in ordinary prose.
    """
    return (start + 3 * FRAMES.index(frame) + len(class_name)) % 4 == 0


def held_out_year(century: int, start: int) -> bool:
    """Tell whether training never shows a span of years that begins in year ``100 * century + start``."""
    return (7 * century + start) % 8 == 0


def starts(class_name: str, shown: int = 4) -> range:
    """Return the indices from which ``shown`` members and a next one exist in the class."""
    count = len(SEQUENCES[class_name])
    return range(count if class_name in CYCLIC else count - shown)


def members_from(class_name: str, start: int, count: int) -> tuple[str, ...]:
    """Return ``count`` consecutive members of a class from index ``start`` (wrapping if it is cyclic)."""
    members = SEQUENCES[class_name]
    return tuple(members[(start + i) % len(members)] for i in range(count))


def single_token_words() -> tuple[str, ...]:
    """Return every word that is one token with a leading space in the embedded models, sorted."""
    numbers = [f"{n:02d}" for n in range(100)]
    lists = (
        *(
            NAMES,
            HELD_OUT_NAMES,
            *SEQUENCES.values(),
            FRAMES,
            SUBJECTS,
            PLACES,
            OBJECTS,
            YEAR_EVENTS,
        ),
        *(numbers, ("in", "to", "the", "The", "and", "year", "from", "lasted")),
    )
    return tuple(sorted({word for words in lists for word in words}))
