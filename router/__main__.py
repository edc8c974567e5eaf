"""`python -m router`: the same as the command `azureml-fe`."""

import sys

from router.cli import main

sys.exit(main())
