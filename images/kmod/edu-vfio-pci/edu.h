/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * edu-vfio-pci: a vfio-pci variant driver that migrates QEMU's "edu" device.
 *
 * The device, and what makes it awkward (QEMU 7.2, docs/specs/edu.txt):
 * - One DMA engine between RAM and a 4 KiB buffer inside. A transfer starts
 *   100 ms after its command and cannot be called back. A bad range aborts
 *   the whole of QEMU, and so does one that reaches the buffer's last byte.
 * - A factorial unit whose result cannot be written, only computed again.
 * - An interrupt status that is raised by one register, lowered by another,
 *   and sends an MSI each time it is raised.
 * - The buffer cannot be read by the CPU: saving it takes a transfer.
 * - No reset of any kind.
 *
 * So BAR0's first page, which has all registers, is always trapped.
 *
 * Locks, outermost first:
 *   state_mutex      the migration state and the data files
 *   file->lock       one data file: its bytes, its end
 *   hw_mutex         the registers, what we know of them, the dirty log
 *   core.memory_lock (read) PCI_COMMAND stays as it is (vfio-pci-core)
 * User memory is copied under state_mutex or file->lock at most, never under
 * memory_lock: its faults take mmap_lock, and the fault handler of a mapped
 * BAR takes memory_lock. The dirty bitmap is written under hw_mutex, which
 * is never taken under mmap_lock.
 */
#ifndef EDU_VFIO_PCI_H
#define EDU_VFIO_PCI_H

#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>
#include <linux/xarray.h>

/* Registers, in BAR0 */
#define EDU_REG_ID		0x00
#define EDU_REG_LIVENESS	0x04	/* reads as the inverse of what was written */
#define EDU_REG_FACTORIAL	0x08
#define EDU_REG_STATUS		0x20
#define   EDU_STATUS_COMPUTING	  0x01
#define   EDU_STATUS_IRQFACT	  0x80	/* raise EDU_IRQ_FACT when computed */
#define EDU_REG_IRQ_STATUS	0x24
#define   EDU_IRQ_FACT		  0x001
#define   EDU_IRQ_DMA		  0x100
#define EDU_REG_IRQ_RAISE	0x60
#define EDU_REG_IRQ_ACK		0x64
#define EDU_REG_DMA_SRC		0x80	/* from here on 4 or 8 bytes wide */
#define EDU_REG_DMA_DST		0x88
#define EDU_REG_DMA_CNT		0x90
#define EDU_REG_DMA_CMD		0x98
#define   EDU_CMD_RUN		  0x1
#define   EDU_CMD_TO_RAM	  0x2
#define   EDU_CMD_IRQ		  0x4

#define EDU_ID			0x010000ed
#define EDU_REGS_SIZE		PAGE_SIZE	/* of BAR0, trapped */
#define EDU_BUF_ADDR		0x40000
#define EDU_BUF_SIZE		4096
/* The last byte cannot be touched, so it never holds anything. */
#define EDU_BUF_USABLE		(EDU_BUF_SIZE - 1)
/* Our own transfers; what lies above goes in one of its own when in use. */
#define EDU_XFER_MAX		4088
/*
 * n! mod 2^32 is 0 from here on. The device multiplies n times whatever n
 * is, which may take many seconds: a larger operand gives the same result.
 */
#define EDU_FACT_ZERO		34

/* What the guest can know of the device's registers. */
struct edu_regs {
	u64 src, dst, cnt;
	u32 cmd;	/* without RUN */
	u32 liveness;	/* as it reads */
	u32 operand;	/* of the factorial */
	u32 irqfact;	/* EDU_STATUS_IRQFACT or 0 */
};

/* What takes a stopped device to get at. */
struct edu_inner {
	u32 irq_status;
	u32 factorial;
	u32 buf_tail;	/* bytes from EDU_XFER_MAX on are in use */
	u8 buf[EDU_BUF_SIZE];
};

struct edu_file;

struct edu_device {
	struct vfio_pci_core_device core;

	struct mutex state_mutex;
	enum vfio_device_mig_state state;
	struct edu_file *saving;
	struct edu_file *resuming;
	/* A reset behind our back cannot take state_mutex (main.c). */
	spinlock_t reset_lock;
	bool deferred_reset;

	struct mutex hw_mutex;
	void __iomem *io;
	bool stopped;		/* commands that start something are refused */
	u32 guest_cmd;		/* DMA command as the guest wrote it, without RUN */
	u32 operand;		/* the factorial's, which the result replaces */
	bool fact_irq_due;	/* EDU_IRQ_FACT may come after COMPUTING went off */
	bool buf_used, buf_tail;

	/* DMA to RAM that was started and not yet seen to have ended */
	bool inflight;
	u64 inflight_start, inflight_len;

	bool logging;
	bool log_lost;		/* no memory to log something: REPORT fails */
	struct xarray log;	/* page frame number of the IOVA -> dirty */
	u32 nr_log_ranges;
	struct edu_range *log_ranges;
};

struct edu_range {
	u64 start, last;
};

static inline struct edu_device *edu_of(struct vfio_device *vdev)
{
	return container_of(vdev, struct edu_device, core.vdev);
}

/* main.c */
extern unsigned long edu_dma_mask;
void edu_state_unlock(struct edu_device *edu);

/* regs.c: the guest's accesses to BAR0's first page */
ssize_t edu_regs_rw(struct edu_device *edu, char __user *buf, size_t count,
		    loff_t offset, bool write);

/* hw.c: all under hw_mutex */
int edu_hw_begin(struct edu_device *edu);
void edu_hw_end(struct edu_device *edu);
int edu_hw_quiesce(struct edu_device *edu);
int edu_hw_wait_idle(struct edu_device *edu);
int edu_hw_read_regs(struct edu_device *edu, struct edu_regs *regs);
int edu_hw_save(struct edu_device *edu, struct edu_inner *inner);
int edu_hw_load(struct edu_device *edu, const struct edu_regs *regs,
		const struct edu_inner *inner);
int edu_hw_reset(struct edu_device *edu, bool with_buffer);

/* scratch.c: the device's buffer by its own DMA; under hw_mutex, idle */
int edu_buffer_get(struct edu_device *edu, u8 *buf, bool tail);
int edu_buffer_put(struct edu_device *edu, const u8 *buf, bool tail);

/* dirty-log.c */
extern const struct vfio_log_ops edu_log_ops;
void edu_log_dma_starts(struct edu_device *edu, u64 iova, u64 len);
void edu_log_dma_settle(struct edu_device *edu, bool running);
void edu_log_disable(struct edu_device *edu);

/* stream.c */
struct edu_file *edu_stream_open_saving(struct edu_device *edu);
struct edu_file *edu_stream_open_resuming(struct edu_device *edu);
int edu_stream_finish(struct edu_file *file, const struct edu_regs *regs,
		      const struct edu_inner *inner);
int edu_stream_loaded(struct edu_file *file, struct edu_regs *regs,
		      struct edu_inner *inner);
void edu_stream_disable(struct edu_file **file);
struct file *edu_stream_get_file(struct edu_file *file);
size_t edu_stream_size_left(struct edu_file *file);

/* migration.c */
extern const struct vfio_migration_ops edu_migration_ops;
void edu_migration_reset(struct edu_device *edu);

#endif
