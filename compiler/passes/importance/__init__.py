# SPDX-License-Identifier: Apache-2.0
"""What a unit is worth: one file a metric, the statistics they read, the choice made of them."""
