# SPDX-License-Identifier: Apache-2.0
"""What proves an artefact: measurements, gates and reports. Opens folders as their user will."""
