/* The guest's workload: init of the guest's initrd, ticks, page writer, DMA ring and interrupts through edu, clock check, NVMe check.
 * One static program. Everything that it has to say goes to the console as one "word key=value ..." line; images/guest/verdict.ts reads
 * them. What counts as right: ../../../docs and the project's main job. */
#ifndef WORKLOAD_H
#define WORKLOAD_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096

/* From the kernel command line, "name=value". */
struct options {
  char mode[16];         /* workload nvme peer shell poweroff */
  char then[16];         /* after the verdict: poweroff reboot halt stay */
  unsigned tick_ms;      /* tick= */
  unsigned stat_ms;      /* stat=: between two lines of counters */
  unsigned clock_ms;     /* clock=: between two looks at the clock */
  uint64_t rate;         /* rate=: bytes a second that the writer writes; K and M are understood */
  uint64_t writer_bytes; /* writer= */
  unsigned ring_pages;   /* ring= */
  unsigned duration_s;   /* duration=: 0 for ever */
  unsigned nvme_blocks;  /* blocks=: 4 KiB blocks that the NVMe check writes and reads */
  unsigned seed;         /* seed= */
  int edu;               /* edu=0: leave the device alone */
  int bringup;           /* bringup=1: drive vfio-bringup; 2: also one that is reset or away under us */
  int mtty;              /* mtty=1: drive mtty's serial port */
};

/* Counted by the threads, printed by the ticker alone. */
struct counters {
  atomic_ulong memory_checks, memory_errors, memory_laps;
  atomic_ulong dma_checks, dma_errors, dmas, dma_bytes;
  atomic_ulong irqs, irq_errors;
  atomic_ulong reg_checks, reg_errors;
  atomic_ulong clock_reads, clock_back;
  atomic_ulong serial_bytes, serial_errors;
};

extern struct options options;
extern struct counters counters;

/* main.c: one whole line with one write, so that lines of two threads never mix. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says the first few; a broken machine must not drown the console. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t now_ns(void);
void sleep_us(uint64_t us);
int read_text(const char *path, char *into, size_t size);
int write_text(const char *path, const char *text);
/* pci.c: its directory in sysfs; ids as "0x1234". -1: there is none. */
int find_pci(const char *vendor, const char *device, char *path, size_t size);
/* The content of word `word` of page `page` written in round `round`: different for each of the three. */
static inline uint64_t stamp(uint64_t kind, uint64_t page, uint64_t round, uint64_t word) {
  uint64_t x = kind << 56 ^ page << 36 ^ round << 12 ^ word;
  x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
  return x ^ x >> 29;
}

void tick_run(void);             /* tick.c: until the end is asked for; prints the verdict */
void writer_start(void);         /* writer.c */
void writer_verify_all(void);    /* every page, once, from the ticker's thread */
void clock_start(void);          /* clock.c: a thread a CPU */
int edu_start(void);             /* edu.c: 0, or -1 without such a device */
void edu_verify_ring(void);
/* A transfer that touches the last byte of edu's buffer ends QEMU 7.2; whole words below it. */
#define EDU_TRANSFER 4088
/* Without its thread: gives the RAM that the kernel leaves to edu. 0 or -1. */
int edu_open(volatile uint64_t **ram, uint64_t *ram_at);
/* EDU_TRANSFER bytes from one bus address to another, through edu's buffer. 0 or -1. */
int edu_through(uint64_t source, uint64_t destination);
/* A register that has to read as it was left: counted, and said when it does not. */
void expect_register(const char *name, uint64_t want, uint64_t found);
int bringup_start(void);         /* bringup.c: 0, or -1 without such a device */
void bringup_verify_ring(void);
int mtty_start(void);            /* mtty.c: 0, or -1 without such a port */
void nvme_run(void);             /* nvme.c */
void peer_run(void);             /* peer.c */
extern atomic_uint writer_pause; /* raised while somebody else verifies */
#endif
