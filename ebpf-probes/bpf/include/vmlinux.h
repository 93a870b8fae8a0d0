/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The kernel types that the probes read, with only the fields that they read. Offsets here
 * have no meaning: every access is relocated (CO-RE) with the BTF of the running kernel, so one
 * object works on every architecture and every kernel that has the field. A definition that
 * only some kernels have has a ___suffix and is used in the compat headers.
 */
#ifndef EBPFMETRICS_VMLINUX_H
#define EBPFMETRICS_VMLINUX_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
};

enum { BPF_F_NO_PREALLOC = 1 };

/* include/linux/sched.h */
#define PF_EXITING 0x00000004
#define PF_FORKNOEXEC 0x00000040
#define PF_KTHREAD 0x00200000
#define EXIT_DEAD 0x00000010
#define TASK_DEAD 0x00000080
/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004

enum cpu_usage_stat {
	CPUTIME_SOFTIRQ,
	CPUTIME_IRQ,
	CPUTIME_STEAL,
	CPUTIME_GUEST,
	CPUTIME_GUEST_NICE,
	NR_STATS,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

typedef struct {
	u32 val;
} kuid_t;

struct list_head {
	struct list_head *next;
};

struct kernel_cpustat {
	u64 cpustat[NR_STATS];
};

struct task_struct;
struct mm_struct;

struct rq {
	u64 clock;
	u64 clock_task;
	int cpu;
	struct task_struct *curr;
	unsigned long long rq_cpu_time; /* CONFIG_SCHEDSTATS */
	u64 prev_steal_time_rq; /* CONFIG_PARAVIRT_TIME_ACCOUNTING */
};

struct cfs_rq {
	struct rq *rq;
};

struct sched_entity {
	u64 exec_start;
	u64 sum_exec_runtime;
	u64 prev_sum_exec_runtime;
	u64 nr_migrations;
	struct cfs_rq *cfs_rq;
	unsigned char sched_delayed; /* since 6.12 */
};

struct sched_info {
	unsigned long long run_delay;
	unsigned long long last_arrival;
	unsigned long long last_queued;
};

struct kernfs_node {
	u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup_root;

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* one per controller */
	struct cgroup *dfl_cgrp;
};

struct cred {
	kuid_t uid;
};

struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct task_io_accounting {
	u64 rchar;
	u64 wchar;
	u64 syscr;
	u64 syscw;
	u64 read_bytes;
	u64 write_bytes;
	u64 cancelled_write_bytes;
};

struct signal_struct {
	atomic_t live;
	int nr_threads;
	struct list_head thread_head;
	int group_exit_code;
	unsigned int flags;
	u64 utime;
	u64 stime;
	unsigned long nvcsw;
	unsigned long nivcsw;
	unsigned long min_flt;
	unsigned long maj_flt;
	unsigned long long sum_sched_runtime;
	unsigned long maxrss; /* brought up to date at exec and at the end alone */
	struct mm_struct *oom_mm;
	struct task_io_accounting ioac;
};

struct thread_info {
	u32 cpu; /* since 5.16 on every architecture */
};

struct task_struct {
	struct thread_info thread_info;
	refcount_t usage;
	unsigned int flags;
	int on_cpu;
	int on_rq;
	int prio;
	int static_prio;
	unsigned int policy;
	unsigned int __state; /* since 5.14 */
	int exit_state;
	int exit_code;
	int pid;
	int tgid;
	struct sched_entity se;
	struct sched_info sched_info;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct list_head thread_node; /* in signal_struct::thread_head */
	u64 utime;
	u64 stime;
	unsigned long nvcsw;
	unsigned long nivcsw;
	unsigned long min_flt;
	unsigned long maj_flt;
	u64 start_boottime;
	u64 self_exec_id; /* one more after each exec */
	const struct cred *real_cred; /* `cred` may be overridden for a while */
	char comm[16];
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct mm_struct *mm;
	struct task_io_accounting ioac;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 seq_num; /* number of elements before this one */
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *key;
	void *value;
};

/* Before 5.14 (2f064a59a11f "sched: Change task_struct::state"). */
struct task_struct___state {
	long state;
};

/* Before 5.16 (bcf9033e5449 "sched: move CPU field back into thread_info"). */
struct task_struct___cpu {
	unsigned int cpu;
};

#pragma clang attribute pop

#endif
