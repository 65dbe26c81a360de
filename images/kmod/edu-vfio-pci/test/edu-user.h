/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A user of edu-vfio-pci in user space: group, type1 container, registers, interrupts, states and the data fd. For check.c.
 * A call that must not fail ends the program with one line.
 */
#ifndef EDU_USER_H
#define EDU_USER_H

#include <linux/vfio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	REG_ID = 0x00, REG_LIVE = 0x04, REG_FACT = 0x08, REG_STATUS = 0x20, REG_IRQ = 0x24, REG_RAISE = 0x60,
	REG_ACK = 0x64, REG_SRC = 0x80, REG_DST = 0x88, REG_CNT = 0x90, REG_CMD = 0x98,
	CMD_RUN = 1, CMD_TO_RAM = 2, CMD_IRQ = 4, BUF = 0x40000,
	/* Where the user's memory is in the I/O address space, and how much. */
	RAM = 0x100000, RAM_SIZE = 1 << 20,
};

struct edu {
	int container, group, fd;
	uint64_t bar, config;
	uint8_t *ram;	/* RAM_SIZE bytes at RAM */
	int intx, msi;	/* eventfds, -1: off */
};

__attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...);

void edu_open(struct edu *edu, const char *group, const char *bdf);
void edu_close(struct edu *edu);
/* Maps more anonymous memory; errno, or 0. */
int edu_map(struct edu *edu, uint64_t iova, size_t size, void *at);

uint32_t r4(struct edu *edu, unsigned int reg);
uint64_t r8(struct edu *edu, unsigned int reg);
void w4(struct edu *edu, unsigned int reg, uint32_t value);
void w8(struct edu *edu, unsigned int reg, uint64_t value);
uint16_t command(struct edu *edu);
void set_command(struct edu *edu, uint16_t value);

/* One transfer; returns at once. cnt bytes between RAM + at and the device's buffer. */
void dma_start(struct edu *edu, unsigned int at, unsigned int inner, unsigned int cnt, uint32_t cmd);
/* The same to its end. */
void dma(struct edu *edu, unsigned int at, unsigned int inner, unsigned int cnt, uint32_t cmd);
void factorial(struct edu *edu, uint32_t operand);

void enable_intx(struct edu *edu);
void unmask_intx(struct edu *edu);
void enable_msi(struct edu *edu);
/* Signals of an eventfd within some time. */
unsigned int signals(int eventfd, int ms);

/* errno, or 0; *data_fd -1 if none came. */
int set_state(struct edu *edu, uint32_t state, int *data_fd);
uint32_t get_state(struct edu *edu);
uint64_t data_size(struct edu *edu);
/* To the end or to ENOMSG; *error is the errno that ended it (0: end of data). */
size_t read_all(int fd, uint8_t *into, size_t room, int *error);
int write_all(int fd, const uint8_t *from, size_t size);
int precopy_info(int fd, uint64_t *initial, uint64_t *dirty);

int log_start(struct edu *edu, uint64_t iova, uint64_t length);
int log_stop(struct edu *edu);
/* A bit a page from iova on, at most 256 pages of them: how many are set, and the first. */
int log_report(struct edu *edu, uint64_t iova, uint64_t length, unsigned int *count, int *first);

#endif
