# SPDX-License-Identifier: Apache-2.0
"""`python -m prunec.compiler`: the command line without its script."""

from prunec.compiler.cli import main

main()
