# SPDX-License-Identifier: Apache-2.0
"""Training that brings back what pruning took: one file a way. The result is layers, as before."""
