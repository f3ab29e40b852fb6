"""Settings: the strict tree, and how it is read from files."""

from kdsuite.config.files import CONFIGS, changed, load
from kdsuite.config.nearest import nearest
from kdsuite.config.section import *
from kdsuite.config.tasks import *
from kdsuite.config.tree import *
