"""Texts written by this program: questions about software and plain sentences about everyday life.

The manuals explain, but nobody asks anything in them, and they hold few everyday sentences.
The word lists below are the authors' own; the combinations are drawn with a fixed seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

TASKS: dict[str, tuple[str, ...]] = {
    "in git": (
        "undo|revert|amend|edit|squash|reset|drop|reword|sign: the last commit|last three commits|previous commit",
        "undo|abort|resolve|revert|finish|continue: a merge|rebase|merge conflict|cherry-pick|bad merge",
        "create|delete|rename|list|switch to|merge|push|restore|compare|check out|track: a branch|remote branch|tag",
        "discard|stash|save|see|stage|unstage|restore: local changes|uncommitted changes|changes to one file|my work",
        "find|search for|show: the commit that broke something|who changed a line|the history of a file|lost commits",
        "clone|fetch|pull from|push to|add|remove|change: a remote repository|submodule|fork|upstream url",
        "ignore|stop tracking|remove|recover: a file|a deleted file|large files|files already committed|secrets",
        "clean up|remove|delete: untracked files|old branches|the index|merged branches|the stash",
        "set|change|configure: my name and email|the default editor|an alias|line endings|credentials|"
        "the commit message",
    ),
    "in Python": (
        "read|write|open|parse|save|append to|load: a text file|a csv file|a json file|a config file|a binary file",
        "sort|reverse|filter|merge|copy|flatten|slice|loop over|remove duplicates from: a list|a dictionary|a tuple",
        "split|join|format|strip|replace text in|reverse|encode|compare|print: a string|unicode text|bytes|a line",
        "handle|raise|catch|log|define|ignore: an exception|an error|a warning|a timeout|a keyboard interrupt",
        "run|start|call|stop|wait for: a subprocess|a thread|a shell command|an async function|a coroutine|a timer",
        "parse|format|add|compare|convert: a date|the current time|a timestamp|time zones|two dates",
        "define|inherit from|decorate|call|test|import|document: a class|a function|a method|a module|a decorator",
        "install|upgrade|uninstall|list|publish|pin: a package|dependencies|a virtual environment|a library",
        "match|search with|escape|replace with|compile: a regular expression|a pattern|groups",
        "profile|speed up|debug|measure|trace: my program|a slow loop|memory use|a function call",
    ),
    "in the shell": (
        "list|copy|move|rename|delete|find|count|compare|sort: files|directories|hidden files|empty files|large files",
        "search for|replace|count|extract|remove text in: files|lines|duplicate lines|words|a column|blank lines",
        "set|export|print|unset|read: an environment variable|the path|an alias|a function|a default value",
        "redirect|pipe|save|discard|combine: output|standard error|the result of a command|two commands",
        "kill|stop|list|suspend|resume|watch: a process|a background job|a running program|all jobs",
        "compress|extract|download|back up|synchronise|encrypt: an archive|a folder|a web page|files to a server",
        "change|check|set|show: file permissions|the owner of a file|disk space|free memory|the size of a directory",
        "loop over|test|compare|read|split: files|a condition|strings|arguments|lines of a file|an array",
        "connect to|log in to|copy files to|restart|schedule|monitor: a server|a remote machine|a service|a cron job",
    ),
    "in SQL": (
        "create|drop|alter|rename|copy|lock|empty|list: a table|a column|an index|a view|a database|a schema|a trigger",
        "insert|update|delete|select|count|sort|merge: rows|duplicate rows|the newest row|several rows at once|"
        "all rows",
        "join|compare|combine|union: two tables|query results|a subquery|tables on a key",
        "speed up|explain|optimise|cancel|log: a slow query|a full table scan|a statement|an index scan",
        "begin|commit|roll back|nest|isolate: a transaction|a savepoint|concurrent updates|a deadlock",
        "back up|restore|dump|replicate|upgrade|vacuum|encrypt: a database|the server|a cluster",
        "grant|revoke|check|change: permissions|a user|a role|a password|access to a table",
        "convert|store|index|search|extract: json|dates|null values|text|arrays|large objects",
    ),
    "on Linux": (
        "install|remove|upgrade|search for|list|pin|hold back: a package|software|security updates|a driver|a font",
        "start|stop|restart|enable at boot|see the log of|write: a service|a systemd unit|a daemon|the web server",
        "add|delete|lock|list|rename: a user|a group|an account|a home directory|a login shell",
        "mount|format|partition|resize|encrypt|check|eject: a disk|a usb stick|a file system|an external drive|swap",
        "show|change|test|block|open|trace: the ip address|a network port|dns|the firewall|a slow connection|the route",
        "find out|change|set: the kernel version|the host name|the time zone|the keyboard layout|the free memory|the cpu",
    ),
    "over ssh": (
        "create|copy|use|protect|change|add: a key|a key pair|a passphrase|the authorized keys|an agent|a config entry",
        "copy|mount|synchronise|edit: remote files|a folder on a server|a remote directory",
        "forward|tunnel|keep open|share: a port|a connection|a session|traffic|a display",
    ),
    "in vim": (
        "quit|save and close|leave|open|reload|split: the editor|a file|all windows|without saving|a buffer|a tab",
        "undo|repeat|copy|paste|delete|indent|sort|join|comment out: a line|the last change|a word|a paragraph|a block",
        "search for|replace|highlight|jump to: a word|text in the whole file|a line number|the end of the file|a mark",
    ),
    "in CSS": (
        "center|align|hide|resize|rotate|float|overlay: an element|a button|text|an image|a box|a table|a menu|a column",
        "change|set|remove|animate: the color|the font|the margin|the border|the background|the width|a link's underline",
        "make: a page responsive|a sticky header|two columns of equal height|a dark theme|rounded corners|a grid layout",
    ),
    "in JavaScript": (
        "sort|filter|copy|merge|loop over|remove from|count: an array|an object|unique values|duplicates|a map",
        "fetch|send|parse|cache|wait for|cancel: data from a server|json|a request|a promise|a form|an upload",
        "add|remove|handle|trigger|debounce: an event listener|a click|an element|a class|a key press|a timer",
    ),
    "with docker": (
        "build|tag|push|pull|delete|shrink|inspect: an image|a base image|unused images|layers",
        "start|stop|remove|restart|enter|limit|debug: a container|all containers|a stopped container|a shell inside it",
        "mount|share|back up|copy|clean up: a volume|a folder|files from a container|disk space|build cache",
        "connect|expose|publish|name|link: a port|a network|two containers|environment variables|a health check",
    ),
    "with a regular expression": (
        "match|capture|replace|exclude|validate|count: digits|an email address|whole words|white space|a date|a url|"
        "everything between quotes|the start of a line|repeated letters|an optional group|the shortest match",
    ),
    "in HTTP": (
        "send|retry|debug|secure|cache|redirect|download with: a request|a header|a cookie|a post|a file|a token",
        "fix|explain|return|avoid: a 404 error|a 403 forbidden|a certificate warning|a timeout|a cors error|a 500 error",
    ),
    "on my computer": (
        "convert|shrink|merge|split|compress|rotate|sign: a pdf|a photo|a video|images|a spreadsheet|a song|a scan",
        "back up|restore|encrypt|find|recover|share|print: my files|a lost document|photos|passwords|a folder|old mail",
        "fix|clean|speed up|restart|update|reset: a slow laptop|the wifi|the screen|the printer|the battery|the sound",
    ),
    "in Rust": (
        "borrow|move|clone|share|drop|return: a value|a reference|ownership|a mutable reference|a string slice",
        "handle|return|propagate|unwrap|match: an error|an option|a result|a panic",
        "define|implement|derive|use: a trait|a struct|an enum|a generic type|a closure|a macro|an iterator|a lifetime",
        "start|join|lock|share data between: threads|a mutex|a channel|an async task",
        "build|test|publish|document|add: a crate|a dependency|a workspace|a binary",
    ),
}
"""Verbs and their objects, by the place where the task is done: `undo|amend: the last commit|a merge`."""

ASKING = (
    "how do I {}?", "how to {}", "how can I {} {where}?", "{} {where}", "what is the best way to {} {where}?",
    "I want to {}", "command to {}", "{}", "how do you {} {where}", "is there a way to {}?", "help me {} {where}",
    "I need to {} {where}", "I cannot {}, what should I do?", "why can't I {}?", "steps to {} {where}",
)  # fmt: skip
PEOPLE = (
    "a man|a woman|a boy|a girl|a child|two dogs|a cat|the teacher|a doctor|my brother|"
    "an old farmer|the musician|the chef|a group of people|three friends|the manager|a nurse|"
    "the police officer|a tourist|the driver|a young couple|a student|the scientist|a horse|a bird|"
    "the crowd|a baby|our neighbour|the company|the president|a football player|my mother"
)
ACTIONS = (
    "is playing a guitar|is riding a bicycle|is cutting an onion|is slicing bread|is reading a newspaper|"
    "is running through a field|is sleeping on the sofa|is talking on the phone|is eating lunch|"
    "is driving a car|is painting a wall|is writing a letter|is swimming in the lake|"
    "is climbing a mountain|is cooking dinner|is singing a song|is dancing on the stage|"
    "is waiting for the bus|bought a new house|lost the keys|won the race|missed the train|"
    "opened the window|broke a glass|found some money|lost the election|announced record profits|"
    "raised prices|refused to pay the bill|cancelled the meeting|complained about the service|"
    "signed a contract|was arrested|was injured in an accident|fell asleep|is not feeling well|"
    "does not like coffee|loves this film|hated the book|is drinking water|is washing the dishes|"
    "is feeding the ducks|jumped over a fence|is throwing a ball|is sitting on a bench|"
    "is looking at a map|is taking a photograph|is learning to dance|is teaching mathematics|"
    "is planting a tree|is repairing the roof"
)
CIRCUMSTANCES = (
    "in the park|in the kitchen|at night|on a rainy day|near the river|in the city|at school|"
    "last week|yesterday|this morning|with great care|very slowly|again|after work|in the snow|"
    "on the beach|in a crowded street|because of the storm|for the first time|without asking anyone|"
    "during the holidays|at the airport|in the garden|before sunrise||||||"
)

_COMMON = (
    "a|about|all|also|an|and|any|are|as|at|be|been|but|by|can|could|do|does|for|from|had|has|have|he|her|his|how|i|if|in|"
    "into|is|it|its|just|may|more|most|no|not|of|on|one|only|or|other|our|out|she|should|so|some|such|than|that|the|their|"
    "them|then|there|these|they|this|those|to|up|use|used|uses|using|was|we|were|what|when|where|which|who|why|will|with|"
    "would|you|your"
)
COMMON = frozenset(_COMMON.split("|"))
"""Words that nobody types into a search field."""
_WORD = re.compile(r"[a-z][a-z0-9_.+#-]*[a-z0-9+#]")


def software_questions(seed: int, per_task: int = 3) -> Iterator[str]:
    """Yield every task of `TASKS`, asked in a few of the ways of `ASKING`."""
    rng = random.Random(seed)
    for where, tasks in TASKS.items():
        for task in tasks:
            verbs, _, objects = task.partition(": ")
            for verb in verbs.split("|"):
                for thing in objects.split("|"):
                    for form in rng.sample(ASKING, per_task):
                        yield form.format(f"{verb} {thing}", where=where)


def everyday_sentences(seed: int, count: int) -> Iterator[str]:
    """Yield `count` sentences such as "A man is playing a guitar in the park."."""
    rng = random.Random(seed)
    people, actions, circumstances = (part.split("|") for part in (PEOPLE, ACTIONS, CIRCUMSTANCES))
    for _ in range(count):
        words = (rng.choice(people), rng.choice(actions), rng.choice(circumstances))
        sentence = " ".join(word for word in words if word)
        yield sentence[0].upper() + sentence[1:] + rng.choice(("", ".", "."))


def task_questions(task: str, rng: random.Random) -> str:
    """Ask for a task as people do: "Search for a pattern in files." → "how do I search for a pattern in files?"."""
    task = task.rstrip(".:")
    return rng.choice(ASKING).replace(" {where}", "").format(task[:1].lower() + task[1:])


def keywords(text: str, rng: random.Random, most: int = 5) -> str:
    """Keep a few words of a text, in their order, as one types them into a search field; never the common ones."""
    words = [word for word in dict.fromkeys(_WORD.findall(text.lower())) if word not in COMMON]
    chosen = set(rng.sample(words, min(len(words), rng.randint(2, most))))
    return " ".join(word for word in words if word in chosen)


def word_questions(word: str, rng: random.Random) -> str:
    """Ask for the meaning of a word."""
    forms = ("what is {}?", "what does {} mean?", "meaning of {}", "define {}", "tell me about {}", "{} definition")
    return rng.choice(forms).format(word)
