// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Charges block I/O the simple way: to whoever runs when a request completes. It is
 * what the disk probe is compared with.
 */
#include "common.h"
#include "vmlinux_block.h"

EBPFMETRICS_LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64); /* device, process */
	__type(value, u64); /* bytes */
} bytes_of SEC(".maps");

SEC("tp_btf/block_rq_complete")
int BPF_PROG(at_completion, struct request *request, int error, unsigned int bytes)
{
	u64 key = (u64)request->bio->bi_bdev->bd_dev << 32 | bpf_get_current_pid_tgid() >> 32;
	u64 zero = 0, *sum;

	bpf_map_update_elem(&bytes_of, &key, &zero, BPF_NOEXIST);
	sum = bpf_map_lookup_elem(&bytes_of, &key);
	if (sum)
		__sync_fetch_and_add(sum, bytes);
	return 0;
}
