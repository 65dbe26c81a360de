// SPDX-License-Identifier: GPL-2.0-only
/*
 * The migration data: what is in it, and the files that carry it.
 *
 *   IDENTITY   first: which device, which version of this format, how far it
 *              reaches. The destination checks it while the guest still runs.
 *   REGISTERS  the guest's registers, again whenever they have changed. The
 *              last one is right.
 *   FINAL      of the stopped device: interrupt status, factorial, buffer; and
 *              a CRC over it and the last REGISTERS. Ends the data.
 *
 * Each is a header (type, length of the body; little endian as all the rest)
 * and a body. In PRE_COPY the reader gets IDENTITY and REGISTERS, which are
 * initial_bytes, and REGISTERS that changed since, which are dirty_bytes.
 */
#include <linux/anon_inodes.h>
#include <linux/crc32.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include "edu.h"

#define EDU_STREAM_MAGIC	0x55444546	/* "FEDU" */
#define EDU_STREAM_VERSION	1

enum { EDU_REC_IDENTITY = 1, EDU_REC_REGISTERS = 2, EDU_REC_FINAL = 3 };

struct edu_rec {
	__le32 type;
	__le32 len;
} __packed;

struct edu_rec_identity {
	__le32 magic;
	__le32 version;
	__le32 device_id;	/* EDU_REG_ID */
	__le32 buf_size;
	__le64 dma_mask;
} __packed;

struct edu_rec_registers {
	__le64 src, dst, cnt;
	__le32 cmd, liveness, operand, irqfact;
} __packed;

struct edu_rec_final {
	__le32 irq_status;
	__le32 factorial;
	__le32 buf_tail;
	u8 buf[EDU_BUF_SIZE];
	__le32 crc;
} __packed;

#define EDU_WHOLE(body)	(sizeof(struct edu_rec) + sizeof(body))
/* At most one of each is waiting to be read. */
#define EDU_QUEUE_SIZE	(EDU_WHOLE(struct edu_rec_identity) + \
			 2 * EDU_WHOLE(struct edu_rec_registers) + \
			 EDU_WHOLE(struct edu_rec_final))

struct edu_file {
	struct edu_device *edu;
	struct file *filp;
	struct mutex lock;
	wait_queue_head_t readable;
	/* The state that it belongs to was left: every call fails from now on. */
	bool disabled;

	/* saving */
	bool final;		/* FINAL is queued: the end is the end */
	bool have_sent;
	struct edu_rec_registers sent;
	size_t len, pos, initial_len;
	u8 queue[EDU_QUEUE_SIZE];

	/* resuming */
	int error;		/* of a write; all later ones fail as well */
	size_t have;		/* bytes of the record that comes in */
	bool got_identity, got_registers, got_final;
	struct edu_rec_registers registers;
	struct edu_rec header;
	struct edu_rec_final body;	/* the largest */
};

static void edu_queue(struct edu_file *file, u32 type, const void *body,
		      size_t len)
{
	struct edu_rec header = {
		.type = cpu_to_le32(type),
		.len = cpu_to_le32(len),
	};

	if (file->pos == file->len)
		file->pos = file->len = file->initial_len = 0;
	if (WARN_ON(file->len + sizeof(header) + len > sizeof(file->queue)))
		return;
	memcpy(file->queue + file->len, &header, sizeof(header));
	memcpy(file->queue + file->len + sizeof(header), body, len);
	file->len += sizeof(header) + len;
}

static struct edu_rec_registers edu_pack(const struct edu_regs *regs)
{
	return (struct edu_rec_registers){
		.src = cpu_to_le64(regs->src),
		.dst = cpu_to_le64(regs->dst),
		.cnt = cpu_to_le64(regs->cnt),
		.cmd = cpu_to_le32(regs->cmd),
		.liveness = cpu_to_le32(regs->liveness),
		.operand = cpu_to_le32(regs->operand),
		.irqfact = cpu_to_le32(regs->irqfact),
	};
}

static void edu_queue_registers(struct edu_file *file,
				const struct edu_rec_registers *now)
{
	edu_queue(file, EDU_REC_REGISTERS, now, sizeof(*now));
	file->sent = *now;
	file->have_sent = true;
}

/* The registers now, if the reader has not had them yet. */
static bool edu_registers_changed(struct edu_file *file,
				  struct edu_rec_registers *now)
{
	struct edu_device *edu = file->edu;
	struct edu_regs regs;
	int ret;

	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_read_regs(edu, &regs);
	mutex_unlock(&edu->hw_mutex);
	if (ret)
		return false;
	*now = edu_pack(&regs);
	return !file->have_sent || memcmp(now, &file->sent, sizeof(*now));
}

static ssize_t edu_save_read(struct file *filp, char __user *buf, size_t count,
			     loff_t *pos)
{
	struct edu_file *file = filp->private_data;
	struct edu_rec_registers now;
	ssize_t ret;

	if (pos)
		return -ESPIPE;
	mutex_lock(&file->lock);
	if (file->disabled) {
		ret = -ENODEV;
		goto unlock;
	}
	if (file->pos == file->len && !file->final &&
	    edu_registers_changed(file, &now))
		edu_queue_registers(file, &now);
	count = min(count, file->len - file->pos);
	if (!count) {
		/* The end for now, and the end. */
		ret = file->pos < file->len || file->final ? 0 : -ENOMSG;
	} else if (copy_to_user(buf, file->queue + file->pos, count)) {
		ret = -EFAULT;
	} else {
		file->pos += count;
		ret = count;
	}
unlock:
	mutex_unlock(&file->lock);
	return ret;
}

/*
 * Readable while something is queued, and at the end. Registers that change
 * wake nobody: who waits for them asks VFIO_MIG_GET_PRECOPY_INFO.
 */
static __poll_t edu_save_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct edu_file *file = filp->private_data;
	__poll_t mask = 0;

	poll_wait(filp, &file->readable, wait);
	mutex_lock(&file->lock);
	if (file->disabled)
		mask = EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	else if (file->final || file->pos < file->len)
		mask = EPOLLIN | EPOLLRDNORM;
	mutex_unlock(&file->lock);
	return mask;
}

static long edu_save_ioctl(struct file *filp, unsigned int cmd,
			   unsigned long arg)
{
	struct edu_file *file = filp->private_data;
	struct vfio_precopy_info info = {};
	struct edu_rec_registers now;
	unsigned long minsz = offsetofend(struct vfio_precopy_info, dirty_bytes);
	size_t left;

	if (cmd != VFIO_MIG_GET_PRECOPY_INFO)
		return -ENOTTY;
	if (copy_from_user(&info, (void __user *)arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.flags = 0;

	mutex_lock(&file->lock);
	if (file->disabled || file->final) {
		mutex_unlock(&file->lock);
		return file->disabled ? -ENODEV : -EINVAL;
	}
	left = file->len - file->pos;
	info.initial_bytes = file->initial_len > file->pos ?
			     file->initial_len - file->pos : 0;
	info.dirty_bytes = left - info.initial_bytes;
	if (edu_registers_changed(file, &now))
		info.dirty_bytes += EDU_WHOLE(now);
	mutex_unlock(&file->lock);
	return copy_to_user((void __user *)arg, &info, minsz) ? -EFAULT : 0;
}

/* The record whose header has come: is it one, and its turn? */
static int edu_check_header(struct edu_file *file)
{
	u32 len = le32_to_cpu(file->header.len);

	switch (le32_to_cpu(file->header.type)) {
	case EDU_REC_IDENTITY:
		return file->got_identity ||
		       len != sizeof(struct edu_rec_identity) ? -EINVAL : 0;
	case EDU_REC_REGISTERS:
		return !file->got_identity ||
		       len != sizeof(struct edu_rec_registers) ? -EINVAL : 0;
	case EDU_REC_FINAL:
		return !file->got_registers ||
		       len != sizeof(struct edu_rec_final) ? -EINVAL : 0;
	}
	return -EINVAL;
}

static int edu_take_identity(struct edu_file *file,
			     const struct edu_rec_identity *identity)
{
	struct pci_dev *pdev = file->edu->core.pdev;

	if (le32_to_cpu(identity->magic) != EDU_STREAM_MAGIC ||
	    le32_to_cpu(identity->version) != EDU_STREAM_VERSION) {
		dev_err_ratelimited(&pdev->dev, "data of another kind or version\n");
		return -EINVAL;
	}
	if (le32_to_cpu(identity->device_id) != EDU_ID ||
	    le32_to_cpu(identity->buf_size) != EDU_BUF_SIZE) {
		dev_err_ratelimited(&pdev->dev, "data of another device\n");
		return -EINVAL;
	}
	/* A shorter reach would send the guest's DMA elsewhere, unnoticed. */
	if (le64_to_cpu(identity->dma_mask) != edu_dma_mask) {
		dev_err_ratelimited(&pdev->dev, "the source's DMA mask is %#llx, ours %#lx\n",
			le64_to_cpu(identity->dma_mask), edu_dma_mask);
		return -EINVAL;
	}
	file->got_identity = true;
	return 0;
}

static int edu_take_registers(struct edu_file *file,
			      const struct edu_rec_registers *registers)
{
	if (le32_to_cpu(registers->cmd) & EDU_CMD_RUN ||
	    le32_to_cpu(registers->operand) > EDU_FACT_ZERO ||
	    le32_to_cpu(registers->irqfact) & ~EDU_STATUS_IRQFACT)
		return -EINVAL;
	file->registers = *registers;
	file->got_registers = true;
	return 0;
}

static __le32 edu_crc(const struct edu_rec_registers *registers,
		      const struct edu_rec_final *final)
{
	u32 crc = crc32_le(~0, (const u8 *)registers, sizeof(*registers));

	return cpu_to_le32(crc32_le(crc, (const u8 *)final,
				    offsetof(struct edu_rec_final, crc)));
}

static int edu_take_final(struct edu_file *file)
{
	if (file->body.crc != edu_crc(&file->registers, &file->body)) {
		dev_err_ratelimited(&file->edu->core.pdev->dev, "data with a wrong checksum\n");
		return -EINVAL;
	}
	file->got_final = true;
	return 0;
}

static int edu_take_record(struct edu_file *file)
{
	switch (le32_to_cpu(file->header.type)) {
	case EDU_REC_IDENTITY:
		return edu_take_identity(file, (void *)&file->body);
	case EDU_REC_REGISTERS:
		return edu_take_registers(file, (void *)&file->body);
	default:
		return edu_take_final(file);
	}
}

/* Takes what of the bytes belongs to the record that comes in. */
static ssize_t edu_take_bytes(struct edu_file *file, const char __user *buf,
			      size_t count)
{
	const size_t head = sizeof(file->header);
	bool in_header = file->have < head;
	size_t end = in_header ? head : head + le32_to_cpu(file->header.len);
	u8 *to = in_header ? (u8 *)&file->header + file->have :
			     (u8 *)&file->body + file->have - head;
	int ret = 0;

	/* Not even the beginning of a header may follow. */
	if (file->got_final)
		return -EINVAL;
	count = min(count, end - file->have);
	if (copy_from_user(to, buf, count))
		return -EFAULT;
	file->have += count;
	if (file->have < end)
		return count;
	if (in_header) {
		ret = edu_check_header(file);
	} else {
		ret = edu_take_record(file);
		file->have = 0;
	}
	return ret ?: count;
}

static ssize_t edu_resume_write(struct file *filp, const char __user *buf,
				size_t count, loff_t *pos)
{
	struct edu_file *file = filp->private_data;
	size_t done = 0;

	if (pos)
		return -ESPIPE;
	mutex_lock(&file->lock);
	if (file->disabled)
		file->error = -ENODEV;
	while (!file->error && done < count) {
		ssize_t ret = edu_take_bytes(file, buf + done, count - done);

		if (ret < 0)
			file->error = ret;
		else
			done += ret;
	}
	mutex_unlock(&file->lock);
	return file->error ?: done;
}

static int edu_file_release(struct inode *inode, struct file *filp)
{
	struct edu_file *file = filp->private_data;

	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations edu_save_fops = {
	.owner = THIS_MODULE,
	.read = edu_save_read,
	.poll = edu_save_poll,
	.unlocked_ioctl = edu_save_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = edu_file_release,
};

static const struct file_operations edu_resume_fops = {
	.owner = THIS_MODULE,
	.write = edu_resume_write,
	.release = edu_file_release,
};

/* One reference is the caller's fd's, edu_stream_get_file() takes it. */
static struct edu_file *edu_file_open(struct edu_device *edu, bool saving)
{
	struct edu_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return ERR_PTR(-ENOMEM);
	file->edu = edu;
	mutex_init(&file->lock);
	init_waitqueue_head(&file->readable);
	file->filp = anon_inode_getfile("edu-vfio-pci",
					saving ? &edu_save_fops :
						 &edu_resume_fops,
					file, saving ? O_RDONLY : O_WRONLY);
	if (IS_ERR(file->filp)) {
		struct edu_file *err = ERR_CAST(file->filp);

		mutex_destroy(&file->lock);
		kfree(file);
		return err;
	}
	stream_open(file->filp->f_inode, file->filp);
	return file;
}

struct edu_file *edu_stream_open_saving(struct edu_device *edu)
{
	struct edu_rec_identity identity = {
		.magic = cpu_to_le32(EDU_STREAM_MAGIC),
		.version = cpu_to_le32(EDU_STREAM_VERSION),
		.device_id = cpu_to_le32(EDU_ID),
		.buf_size = cpu_to_le32(EDU_BUF_SIZE),
		.dma_mask = cpu_to_le64(edu_dma_mask),
	};
	struct edu_file *file = edu_file_open(edu, true);
	struct edu_rec_registers now;

	if (IS_ERR(file))
		return file;
	edu_queue(file, EDU_REC_IDENTITY, &identity, sizeof(identity));
	/* linux/vfio.h: dirty_bytes starts at zero. */
	if (edu_registers_changed(file, &now))
		edu_queue_registers(file, &now);
	file->initial_len = file->len;
	return file;
}

struct edu_file *edu_stream_open_resuming(struct edu_device *edu)
{
	return edu_file_open(edu, false);
}

/* For the fd that SET_STATE returns. */
struct file *edu_stream_get_file(struct edu_file *file)
{
	return get_file(file->filp);
}

/* The state of the stopped device, to its end. */
int edu_stream_finish(struct edu_file *file, const struct edu_regs *regs,
		      const struct edu_inner *inner)
{
	struct edu_rec_registers now = edu_pack(regs);
	struct edu_rec_final *final = kzalloc(sizeof(*final), GFP_KERNEL);

	if (!final)
		return -ENOMEM;
	final->irq_status = cpu_to_le32(inner->irq_status);
	final->factorial = cpu_to_le32(inner->factorial);
	final->buf_tail = cpu_to_le32(inner->buf_tail);
	memcpy(final->buf, inner->buf, sizeof(final->buf));
	final->crc = edu_crc(&now, final);

	mutex_lock(&file->lock);
	if (!file->have_sent || memcmp(&now, &file->sent, sizeof(now)))
		edu_queue_registers(file, &now);
	edu_queue(file, EDU_REC_FINAL, final, sizeof(*final));
	file->final = true;
	mutex_unlock(&file->lock);
	wake_up_interruptible(&file->readable);
	kfree(final);
	return 0;
}

/* What was written, if it is all there. Nothing was loaded yet. */
int edu_stream_loaded(struct edu_file *file, struct edu_regs *regs,
		      struct edu_inner *inner)
{
	int ret = 0;

	mutex_lock(&file->lock);
	if (file->error || !file->got_final) {
		dev_err_ratelimited(&file->edu->core.pdev->dev, "the data is not complete\n");
		ret = -EINVAL;
	} else {
		*regs = (struct edu_regs){
			.src = le64_to_cpu(file->registers.src),
			.dst = le64_to_cpu(file->registers.dst),
			.cnt = le64_to_cpu(file->registers.cnt),
			.cmd = le32_to_cpu(file->registers.cmd),
			.liveness = le32_to_cpu(file->registers.liveness),
			.operand = le32_to_cpu(file->registers.operand),
			.irqfact = le32_to_cpu(file->registers.irqfact),
		};
		inner->irq_status = le32_to_cpu(file->body.irq_status);
		inner->factorial = le32_to_cpu(file->body.factorial);
		inner->buf_tail = le32_to_cpu(file->body.buf_tail);
		memcpy(inner->buf, file->body.buf, sizeof(inner->buf));
	}
	mutex_unlock(&file->lock);
	return ret;
}

/* The user may keep the fd, but it is good for nothing from here on. */
void edu_stream_disable(struct edu_file **which)
{
	struct edu_file *file = *which;

	if (!file)
		return;
	*which = NULL;
	mutex_lock(&file->lock);
	file->disabled = true;
	mutex_unlock(&file->lock);
	wake_up_interruptible(&file->readable);
	fput(file->filp);
}

/* How much is to come until the end. NULL: as if it were begun now. */
size_t edu_stream_size_left(struct edu_file *file)
{
	size_t left = EDU_WHOLE(struct edu_rec_registers) +
		      EDU_WHOLE(struct edu_rec_final);

	if (!file)
		return left + EDU_WHOLE(struct edu_rec_identity);
	mutex_lock(&file->lock);
	if (file->final)
		left = 0;
	left += file->len - file->pos;
	mutex_unlock(&file->lock);
	return left;
}
