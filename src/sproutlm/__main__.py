"""``python -m sproutlm`` is ``sprout``."""

from .cli import main

raise SystemExit(main())
