// SPDX-License-Identifier: GPL-2.0-only
// What is made to fail by parameter fails there and nowhere else, and works again afterwards. On abi d. See check.c.
#include "check.h"
#include "v2-user.h"
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint8_t data[4 << 20];

/* Bytes that came before the read that failed; the session goes on behind it. */
static size_t read_until(struct device *d, const char *place, size_t *all)
{
	size_t before = 0;
	int fd, error;
	ssize_t n;

	parameter("fail_read", place);
	SAME(set_state(d, STATE(STOP_COPY), &fd), 0);
	*all = data_size(d);
	while ((n = read(fd, data + before, PAGE)) > 0)
		before += n;
	SAME(n, -1);
	SAME(errno, EIO);
	parameter("fail_read", "none");
	SAME(before + read_all(fd, data + before, sizeof(data) - before, &error), *all);
	SAME(error, 0);
	close(fd);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	return before;
}

static size_t write_until(struct device *d, const char *place, size_t all)
{
	size_t before = 0;
	ssize_t n = 0;
	int fd;

	parameter("fail_write", place);
	SAME(set_state(d, STATE(RESUMING), &fd), 0);
	while (before < all && (n = write(fd, data + before, all - before < PAGE ? all - before : PAGE)) > 0)
		before += n;
	SAME(n, -1);
	SAME(errno, EIO);
	parameter("fail_write", "none");
	close(fd);
	reset(d);
	return before;
}

static void rule_fail_data(struct device *d, struct device *other)
{
	size_t all, before;

	(void)other;
	SAME(read_until(d, "first", &all), 0);
	before = read_until(d, "middle", &all);
	TRUE(before >= all / 2 - PAGE && before <= all / 2 + PAGE);
	before = read_until(d, "last", &all);
	TRUE(before < all && all - before <= PAGE);
	SAME(write_until(d, "first", all), 0);
	before = write_until(d, "middle", all);
	TRUE(before >= all / 2 - PAGE && before <= all / 2 + PAGE);
	before = write_until(d, "last", all);
	TRUE(before < all && all - before <= PAGE);
}

/* Nothing is answered, nothing is changed; afterwards all is as it was. */
static void rule_gone(struct device *d, struct device *other)
{
	uint32_t value;
	int fd, error;

	(void)other;
	w8(d, SCRATCH, 42);
	SAME(set_state(d, STATE(PRE_COPY), &fd), 0);
	parameter("gone", "1");
	SAME(pread(d->fd, &value, 4, d->bar), -1);
	SAME(errno, ENODEV);
	SAME(pread(d->fd, &value, 4, d->config), -1);
	SAME(errno, ENODEV);
	SAME(ioctl(d->fd, VFIO_DEVICE_RESET), -1);
	SAME(errno, ENODEV);
	SAME(set_state(d, STATE(RUNNING), NULL), ENODEV);
	SAME(read_all(fd, data, PAGE, &error), 0);
	SAME(error, ENODEV);
	parameter("gone", "0");
	SAME(get_state(d), STATE(PRE_COPY));
	SAME(r8(d, SCRATCH), 42);
	close(fd);
}

static void rule_fail_reset(struct device *d, struct device *other)
{
	uint16_t command = 6, found;

	(void)other;
	w8(d, SCRATCH, 42);
	parameter("fail_reset", "1");
	SAME(ioctl(d->fd, VFIO_DEVICE_RESET), -1);
	SAME(errno, EIO);
	SAME(r8(d, SCRATCH), 42);
	parameter("fail_reset", "0");
	/* And one that takes everything with it. */
	parameter("hard_reset", "1");
	SAME(dma(d, FILL, 0, PAGE, 1), 3);
	SAME(pwrite(d->fd, &command, 2, d->config + 4), 2);
	SAME(dma(d, FILL, 0, PAGE, 1), 0);
	enable_msi(d, 4);
	reset(d);
	SAME(pread(d->fd, &found, 2, d->config + 4), 2);
	SAME(found, 0);
	w4(d, IRQ_RAISE, 1);
	SAME(signals(d->msi[0], 100), 0);
	SAME(r4(d, IRQ_PENDING), 1);
	parameter("hard_reset", "0");
}

const struct rule rules_faults[] = {
	{ "fail-data", rule_fail_data }, { "gone", rule_gone }, { "fail-reset", rule_fail_reset }, { NULL, NULL },
};
