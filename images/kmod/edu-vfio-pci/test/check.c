// SPDX-License-Identifier: GPL-2.0-only
/*
 * What edu-vfio-pci has to do right, a rule each: `check GROUP BDF RULE`. Prints "ok RULE" or one line that begins with FAIL.
 * Run in a lab host by test/lab/kmod-edu.test.ts. Nothing here ever reaches the device's byte 4095: that would end the lab host.
 */
#define _GNU_SOURCE
#include "check.h"
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

void same(unsigned long long a, unsigned long long b, const char *what, int line)
{
	if (a != b)
		die("line %d: %s: %#llx, %#llx", line, what, a, b);
}

double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

void fill(uint8_t *at, size_t size, unsigned int seed)
{
	for (size_t i = 0; i < size; i++)
		at[i] = (seed = seed * 1103515245 + 12345) >> 16;
}

uint8_t data[65536];

size_t save(struct edu *edu)
{
	int fd, error;
	size_t size;

	SAME(set_state(edu, STATE(STOP_COPY), &fd), 0);
	TRUE(fd >= 0);
	size = read_all(fd, data, sizeof(data), &error);
	SAME(error, 0);
	close(fd);
	return size;
}

int load(struct edu *edu, size_t size)
{
	int fd, error;

	SAME(set_state(edu, STATE(RESUMING), &fd), 0);
	error = write_all(fd, data, size);
	close(fd);
	if (error)
		return error;
	return set_state(edu, STATE(STOP), NULL);
}

void reset(struct edu *edu)
{
	SAME(ioctl(edu->fd, VFIO_DEVICE_RESET), 0);
}

void move(struct edu *edu)
{
	size_t size = save(edu);
	int fd;

	reset(edu);
	SAME(r4(edu, REG_IRQ), 0);
	SAME(set_state(edu, STATE(RESUMING), &fd), 0);
	SAME(write_all(fd, data, size), 0);
	close(fd);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
}

static const struct { const char *name; void (*run)(struct edu *edu); } rules[] = {
	{ "log", rule_log }, { "registers", rule_registers }, { "factorial", rule_factorial }, { "intx", rule_intx },
	{ "msi", rule_msi }, { "command", rule_command }, { "scratch", rule_scratch }, { "scratch-full", rule_scratch_full },
	{ "reset", rule_reset }, { "mark", rule_mark }, { "clean", rule_clean }, { "ranges", rule_ranges },
	{ "precopy", rule_precopy }, { "identity", rule_identity }, { "write", rule_write }, { "other-mask", rule_other_mask },
	{ "refusals", rule_refusals }, { "arcs", rule_arcs }, { "bar", rule_bar }, { "stopped", rule_stopped },
};

int main(int argc, char **argv)
{
	struct edu edu;

	setbuf(stdout, NULL);
	for (unsigned int i = 0; argc == 4 && i < sizeof(rules) / sizeof(*rules); i++) {
		if (strcmp(rules[i].name, argv[3]))
			continue;
		edu_open(&edu, argv[1], argv[2]);
		rules[i].run(&edu);
		edu_close(&edu);
		printf("ok %s\n", argv[3]);
		return 0;
	}
	die("check GROUP BDF RULE: no such rule");
}
