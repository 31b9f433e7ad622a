# SPDX-License-Identifier: Apache-2.0
"""Where text comes from and how it becomes windows of tokens."""
