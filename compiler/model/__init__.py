# SPDX-License-Identifier: Apache-2.0
"""What a model is: its facts, its layout, its checkpoint, its decoder layers. Knows no pass."""
