/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The disk part of a final record: what the kernel's I/O accounting says of a process. */
#ifndef EBPFMETRICS_DISK_ENDED_H
#define EBPFMETRICS_DISK_ENDED_H

#include "common.h"

struct disk_totals_record {
	u64 dirtied_bytes;
	u64 cancelled_bytes;
	u64 read_chars;
	u64 written_chars;
	u64 read_calls;
	u64 write_calls;
};

/*
 * Sums of its dead threads. The kernel's own sum (signal->ioac) will not do: it includes
 * children that the process has waited for.
 */
struct disk_ended_record {
	struct disk_totals_record totals;
	struct disk_totals_record leader; /* the part of its leader, as of its exit */
};

#endif
