"""Study: the course as pages that run.

    python -m study                         everything there is, with a tick for what you have done
    python -m study 7                       lesson 7, run on tensorlite
    python -m study 7 --engine torch        the same lines on torch
    python -m study 7 --language zh-TW      in Traditional Chinese

A lesson is a Markdown file in `study/lessons`, one for each language: prose, blocks of Python, and below each block what it prints.
Markdown reads well in an editor and in the repository's pages, its blocks can be copied, and a reader sees one language. The price is that
the code stands in two files: `scripts/course.py` copies it from the English one, and tests hold the two equal, run every block on both
engines, and compare what is printed with what the file says.

    page        a lesson as a file: its prose, its code, its outputs
    runner      runs the code of a page on one of the engines
    screen      a page on a terminal of any width, encoding and language
    notebook    a page as .ipynb
    table       `show`, with which the lessons print numbers;  draw: `numbers`, with which they fill weights
    progress    what was done, in my_study/progress.json
    exercises   pages to write gradients on, solved;  mysteries: faults in them;  exercise: one of them as it is handed out
    examine     runs a student's page and says what is wrong;  examiner: in another process, with a limit of time;  verdict: the result
    write, check, train     the commands for the exercises
    lesson      the command for a lesson;  __main__: the table of commands, and the list of everything
"""

from study.draw import numbers
from study.table import show

__all__ = ["numbers", "show"]
