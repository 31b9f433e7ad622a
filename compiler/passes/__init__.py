# SPDX-License-Identifier: Apache-2.0
"""What turns a model into a smaller one, one file a pass. Knows no searcher and no exporter."""
