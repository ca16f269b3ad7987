"""The demo corpus: synthetic speech in the layout of the IEMOCAP release, its odd corners included.

words        what is said (words.toml), and how a text is put together
dialogues    who says what in which emotion
raters       the raters' categories and ratings of a line
voices       how a speaker sounds in an emotion
synthesiser  the waveform
release      the text files of a dialogue
write        all of it into a folder
"""

from .words import demo_vocabulary
from .write import write_demo

__all__ = ["demo_vocabulary", "write_demo"]
