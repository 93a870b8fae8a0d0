/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The numbers of the sections of a walk. */
#ifndef EBPFMETRICS_SECTIONS_H
#define EBPFMETRICS_SECTIONS_H

enum section_number {
	SECTION_PROCESS = 0,
	SECTION_CPU = 1,
	SECTION_MEM = 2,
	SECTION_DISK = 3,
	SECTION_SLAB = 4,
	SECTION_OTHERS = 16, /* probes from other crates begin here */
};

#endif
