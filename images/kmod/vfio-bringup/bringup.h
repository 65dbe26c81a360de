/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vfio-bringup: a VFIO PCI device with no hardware behind it, for proving
 * migration. README.md has the registers; bugs.h what can be wrong with it.
 *
 *   params.c   the module's parameters; faults.c those that make it fail
 *   mdev.c     module, parent, the life of a device
 *   device.c   what every VFIO PCI device answers
 *   pci.c      config space and the BARs
 *   dma.c      the DMA engine, a kernel thread; the internal state; reset
 *   irq.c      MSI and the request eventfd
 *   log.c      which pages of RAM the device has written
 *   save.c, load.c  internal state <-> bytes (stream.h), for abi b, c and d
 *   v2.c       abi d: states; file.c its data fd
 *   region-a.c abi a; region-bc.c abi b and c
 *
 * Locks, outermost first:
 *   state_mutex  the migration state and what belongs to its session
 *   file->lock   one data fd of abi d
 *   hw           registers, memory, eventfds
 *   log_lock     the dirty log
 * User memory is copied under state_mutex and file->lock at most, and
 * vfio_dma_rw() is called under none.
 */
#ifndef BRINGUP_H
#define BRINGUP_H

#include <linux/mdev.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>
#include <linux/wait.h>
#include <linux/xarray.h>
#include "bugs.h"

/* The stream has the structs as they are. */
#ifndef __LITTLE_ENDIAN
#error "vfio-bringup is for little-endian machines"
#endif

#define BRING_VENDOR		0x1234
#define BRING_DEVICE		0xfe01
#define BRING_ID		0x31554246	/* "FBU1" */
#define BRING_VERSION		1
#define BRING_RNG_SEED		0x9e3779b97f4a7c15ULL
#define BRING_VECTORS		4

#define BRING_BAR0_SIZE		0x10000
#define BRING_WINDOW_AT		0x8000
#define BRING_MAILBOX_SIZE	0x1000		/* BAR2 */
#define BRING_MEMORY_MIN	0x10000ULL
#define BRING_MEMORY_MAX	0x10000000ULL
#define BRING_CONFIG_SIZE	0x100

/* Regions beyond the PCI ones: at most CTL, CONFIG, MEMORY, BITMAP (abi a). */
#define BRING_EXTRA_REGIONS	4

enum bring_abi { BRING_A, BRING_B, BRING_C, BRING_D };

#define BRING_PRE_COPY		0x01
#define BRING_P2P		0x02
#define BRING_LOG		0x04
#define BRING_DATA_SIZE		0x08
#define BRING_MMAP		0x10
#define BRING_SPLIT		0x20
#define BRING_NO_MEMORY		0x40
#define BRING_NO_BITMAP		0x80

/* BAR0 from 0 on, and the part of the state that a HASH's low half covers. */
struct bring_regs {
	u32 id, version;
	u64 memory_size;
	u64 scratch;
	u64 sequence;
	u64 rng;
	u64 hash;		/* computed when it is read */
	u32 mutate;
	u32 vectors;
	u64 window;
	u64 dma_iova;
	u64 dma_mem;
	u32 dma_len;
	u32 dma_seed;
	u32 dma_delay;
	u32 dma_cmd;
	u64 dma_done;
	u32 dma_status;
	u32 dma_errors;
	u32 dma_pass;
	u32 dma_count;
	u32 irq_raise;
	u32 irq_pending;
	u32 irq_count[BRING_VECTORS];
};
static_assert(offsetof(struct bring_regs, dma_iova) == 0x40);
static_assert(sizeof(struct bring_regs) == 0x90);

#define BRING_CMD_OP		0xf
#define BRING_OP_READ		1
#define BRING_OP_WRITE		2
#define BRING_OP_FILL		3
#define BRING_OP_CHECK		4
#define BRING_CMD_IRQ		0x10
#define BRING_CMD_PEER		0x20
#define BRING_CMD_REPEAT	0x40
#define BRING_CMD_VECTOR(cmd)	(((cmd) >> 8) & 3)
#define BRING_BUSY		0x1
#define BRING_STATUS(error)	((error) << 8)
#define BRING_DELAY_MAX		1000000

struct bring_device;
struct bring_saver;
struct bring_loader;
struct bring_file;
struct bring_chunk;

/* What a generation adds to the device. */
struct bring_abi_ops {
	int (*init)(struct bring_device *dev);
	void (*release)(struct bring_device *dev);
	/*
	 * Under state_mutex: the device runs anew, no session is left. By a
	 * reset, or because a user comes or goes.
	 */
	void (*reset)(struct bring_device *dev, bool reset);
	/* Its regions, from VFIO_PCI_NUM_REGIONS on; NULL: none. */
	ssize_t (*rw)(struct bring_device *dev, unsigned int index,
		      char __user *buf, size_t count, u64 at, bool write);
};

struct bring_extra_region {
	u32 type, subtype;
	u64 size;
	u64 map_at, map_size;	/* what of it may be mapped; 0: nothing */
	void *map;		/* vmalloc_user() */
};

struct bring_device {
	struct vfio_device vdev;
	unsigned int instance;
	enum bring_abi abi;
	const struct bring_abi_ops *ops;
	u32 features, region_type;
	u64 section;
	u32 bug, odd;		/* as of the last open */

	struct mutex state_mutex;
	u32 state;		/* in the numbers of its own generation */
	void *session;		/* of abi a, b, c */
	struct bring_file *saving, *resuming;	/* of abi d */
	u32 sessions;
	bool refused;		/* data that was loaded, once */

	struct mutex hw;
	struct bring_regs regs;
	u8 *memory;
	u8 *mailbox;
	unsigned long *dirty;	/* pages of memory that a saver has to send */
	u8 config[BRING_CONFIG_SIZE];
	bool frozen;		/* BAR writes are ignored */
	bool hold;		/* the engine begins no chunk */
	bool hold_peer;		/* none of BRING_CMD_PEER */
	bool mute;		/* no interrupt goes out */
	bool in_chunk;
	bool abort;		/* the command ends with its present chunk */
	struct task_struct *engine;
	struct bring_chunk *chunk;
	wait_queue_head_t wake;
	struct eventfd_ctx *msi[BRING_VECTORS];
	struct eventfd_ctx *request;

	struct mutex log_lock;
	bool logging, log_lost;
	struct xarray log;	/* IOVA page -> dirty */
	u32 nr_ranges;
	struct bring_range *ranges;	/* NULL: all of the address space */

	unsigned int nr_extra;
	struct bring_extra_region extra[BRING_EXTRA_REGIONS];
};

struct bring_range {
	u64 start, last;
};

static inline struct bring_device *bring_of(struct vfio_device *vdev)
{
	return container_of(vdev, struct bring_device, vdev);
}

static inline unsigned long bring_pages(struct bring_device *dev)
{
	return dev->regs.memory_size >> PAGE_SHIFT;
}

static inline bool bring_bug(struct bring_device *dev, enum bring_bug bug)
{
	return dev->bug == bug;
}

static inline bool bring_odd(struct bring_device *dev, enum bring_odd odd)
{
	return dev->odd == odd;
}

/* params.c */
#define BRING_INSTANCES	16
int bring_take_instance(void);
void bring_put_instance(struct bring_device *dev);
int bring_configure(struct bring_device *dev);
void bring_take_faults(struct bring_device *dev);
bool bring_late_validation(void);

/* faults.c */
/* -EIO if fail_arc= names it; *error: it is to end in ERROR. */
int bring_fail_arc(u32 from, u32 to, bool *error);
/* Of a chunk before which @done of @all bytes were moved; @last: the end. */
int bring_fail_read(u64 done, u64 all, bool last);
int bring_fail_write(u64 done, u64 all, bool last);
int bring_fail_reset(void);
int bring_gone(void);
bool bring_hard_reset(void);

/* mdev.c */
int bring_reset(struct bring_device *dev);

/* device.c */
long bring_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg);
ssize_t bring_read(struct vfio_device *vdev, char __user *buf, size_t count,
		   loff_t *pos);
ssize_t bring_write(struct vfio_device *vdev, const char __user *buf,
		    size_t count, loff_t *pos);
int bring_mmap(struct vfio_device *vdev, struct vm_area_struct *vma);
void bring_request(struct vfio_device *vdev, unsigned int count);

/* pci.c */
void bring_config_init(struct bring_device *dev);
bool bring_is_master(struct bring_device *dev);
ssize_t bring_config_rw(struct bring_device *dev, char __user *buf,
			size_t count, u64 at, bool write);
ssize_t bring_bar_rw(struct bring_device *dev, unsigned int bar,
		     char __user *buf, size_t count, u64 at, bool write);

/* dma.c */
int bring_engine_start(struct bring_device *dev);
void bring_engine_stop(struct bring_device *dev);
void bring_dma_command(struct bring_device *dev, u32 cmd);
void bring_mutate(struct bring_device *dev, u32 value);
u64 bring_hash(struct bring_device *dev);
u64 bring_pattern(u32 seed, u32 pass, u64 word);
void bring_memory_written(struct bring_device *dev, u64 at, u64 len);
/* Return when no chunk is under way. */
int bring_hold(struct bring_device *dev, bool runs_on);
int bring_hold_peer(struct bring_device *dev);
/* Registers and interrupts again; the engine still stands. */
void bring_thaw(struct bring_device *dev);
void bring_release(struct bring_device *dev);
void bring_reset_state(struct bring_device *dev);

/* irq.c */
long bring_irq_info(struct bring_device *dev, void __user *arg);
long bring_set_irqs(struct bring_device *dev, void __user *arg);
void bring_irq_raise(struct bring_device *dev, u32 vectors);
void bring_irq_flush(struct bring_device *dev);
void bring_irq_disable(struct bring_device *dev);
void bring_irq_request(struct bring_device *dev);

/* log.c */
extern const struct vfio_log_ops bring_log_ops;
void bring_log_mark(struct bring_device *dev, u64 iova, u64 len);
int bring_log_begin(struct bring_device *dev);
void bring_log_end(struct bring_device *dev);
/* Next dirty page in [page, last], taken out of the log; ULONG_MAX: none. */
unsigned long bring_log_take(struct bring_device *dev, unsigned long page,
			     unsigned long last);

/* save.c, load.c */
struct bring_saver *bring_saver_open(struct bring_device *dev);
void bring_saver_close(struct bring_saver *saver);
void bring_saver_finish(struct bring_saver *saver);
bool bring_saver_finished(struct bring_saver *saver);
/* What is there now, 0 if there is nothing; *end: nor will be. */
size_t bring_saver_peek(struct bring_saver *saver, const u8 **bytes, bool *end);
void bring_saver_took(struct bring_saver *saver, size_t bytes);
u64 bring_saver_sent(struct bring_saver *saver);
/* All was taken, and no more will be. */
bool bring_saver_over(struct bring_saver *saver);
void bring_saver_left(struct bring_saver *saver, u64 *initial, u64 *dirty);
u64 bring_saver_rest(struct bring_saver *saver);
u64 bring_stream_size(struct bring_device *dev);
struct bring_loader *bring_loader_open(struct bring_device *dev);
void bring_loader_close(struct bring_loader *loader);
int bring_loader_feed(struct bring_loader *loader, const u8 *bytes,
		      size_t count);
u64 bring_loader_fed(struct bring_loader *loader);
/* It has the last record. */
bool bring_loader_over(struct bring_loader *loader);
/* Everything is checked before the device is touched. */
int bring_loader_commit(struct bring_loader *loader);

/* file.c */
struct bring_file *bring_file_open(struct bring_device *dev, bool saving);
struct file *bring_file_get(struct bring_file *file);
void bring_file_finish(struct bring_file *file);
int bring_file_commit(struct bring_file *file);
void bring_file_disable(struct bring_file **file);
u64 bring_file_rest(struct bring_file *file);

/* v2.c, region-a.c, region-bc.c */
extern const struct bring_abi_ops bring_v2_ops;
extern const struct bring_abi_ops bring_region_a_ops;
extern const struct bring_abi_ops bring_region_bc_ops;

#endif
