# SPDX-License-Identifier: Apache-2.0
"""Searchers propose layouts, one evaluator scores them. Neither knows an exporter."""
