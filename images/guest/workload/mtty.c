/* mtty, the kernel's sample of a mediated serial card, driven by the guest's own 8250_pci as a serial port. mtty=1 asks for it.
 * One thread goes round: a frame with its number goes out of the looped-back port and has to come back whole, by interrupt (/proc/interrupts);
 * and the scratch register, which the driver leaves alone, has to read as it was left, also while a frame is waited for: a card that lost its
 * state sends none. linux/serial_reg.h; linux samples/vfio-mdev/mtty.c */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include "workload.h"

#define KIND 5
/* asm-generic/termios.h, TIOCM_LOOP; glibc's headers have it not, and exclude those. */
#define MODEM_LOOP 0x8000
/* One burst of the driver's. mtty takes a FIFO with 16 bytes in it for an empty one. */
#define FRAME 14
#define SCRATCH 7
#define PATIENCE_S 20
#define PAUSE_US 20000

static int tty = -1, ports = -1;
static uint8_t scratch;
static unsigned irq;

/* ---- finding and opening ---- */

static unsigned irq_of(const char *card) {
  char file[400], text[64] = "";
  snprintf(file, sizeof file, "%s/irq", card);
  read_text(file, text, sizeof text);
  return strtoul(text, NULL, 10);
}

/* Of the card's ports the one with the lowest number, which is that of BAR 0. */
static int find_port(const char *card, char *name, size_t size) {
  char directory[400];
  snprintf(directory, sizeof directory, "%s/tty", card);
  DIR *dir = opendir(directory);
  struct dirent *entry;
  int lowest = -1;
  while (dir && (entry = readdir(dir))) {
    int n;
    if (sscanf(entry->d_name, "ttyS%d", &n) == 1 && (lowest < 0 || n < lowest)) lowest = n;
  }
  if (dir) closedir(dir);
  snprintf(name, size, "/dev/ttyS%d", lowest);
  return lowest < 0 ? -1 : 0;
}

static void set_scratch(uint8_t value) {
  scratch = value;
  if (pwrite(ports, &value, 1, SCRATCH) != 1) complain("kind=mtty text=cannot-write-register");
}

static int open_all(const char *card, const char *name) {
  struct termios t;
  int loop = MODEM_LOOP;
  char bar[400];
  snprintf(bar, sizeof bar, "%s/resource0", card);
  irq = irq_of(card);
  tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  /* Not by ioperm(): QEMU's TCG, which a lab host runs on, takes a TSS for invalid that KVM has loaded, and then refuses every port. */
  ports = open(bar, O_RDWR | O_CLOEXEC);
  if (tty < 0 || ports < 0 || !irq || tcgetattr(tty, &t) < 0) {
    complain("kind=start text=cannot-open tty=%d resource0=%d irq=%u", tty, ports, irq);
    return -1;
  }
  cfmakeraw(&t);
  t.c_cflag |= CLOCAL | CREAD;
  cfsetspeed(&t, B115200);
  set_scratch(0);
  if (tcsetattr(tty, TCSANOW, &t) < 0 || ioctl(tty, TIOCMBIS, &loop) < 0) return -1;
  return tcflush(tty, TCIOFLUSH);
}

/* ---- a turn ---- */

static void serial_error(const char *what, uint32_t turn, unsigned long detail) {
  atomic_fetch_add(&counters.serial_errors, 1);
  complain("kind=mtty text=%s turn=%u found=%lx", what, turn, detail);
}

/* How often the line has fired, on all CPUs; 0: it is not there. */
static unsigned long interrupts(void) {
  static char text[16384];
  char label[16];
  unsigned long sum = 0;
  if (read_text("/proc/interrupts", text, sizeof text) < 0) return 0;
  snprintf(label, sizeof label, "%u:", irq);
  for (char *line = text; line; line = strchr(line, '\n')) {
    line += strspn(line, " \n");
    if (strncmp(line, label, strlen(label))) continue;
    char *at = line + strlen(label), *end;
    for (unsigned long n = strtoul(at, &end, 10); end != at; n = strtoul(at, &end, 10)) sum += n, at = end;
    break;
  }
  return sum;
}

static void check_scratch(void) {
  uint8_t found = 0;
  if (pread(ports, &found, 1, SCRATCH) != 1) complain("kind=mtty text=cannot-read-register");
  expect_register("scratch", scratch, found);
}

static void make_frame(uint8_t *frame, uint32_t turn) {
  memcpy(frame, &turn, sizeof turn);
  for (unsigned i = sizeof turn; i < FRAME; i++) frame[i] = stamp(KIND, 0, turn, i);
}

/* There and back. A frame that was lost is not waited for by the next one. */
static void exchange(uint32_t turn) {
  uint8_t sent[FRAME], back[FRAME];
  struct pollfd event = {tty, POLLIN, 0};
  size_t have = 0;
  unsigned waited = 0;
  make_frame(sent, turn);
  if (write(tty, sent, FRAME) != FRAME) serial_error("cannot-write", turn, 0);
  while (have < FRAME && waited < PATIENCE_S) {
    if (poll(&event, 1, 1000) == 1) {
      ssize_t n = read(tty, back + have, FRAME - have);
      if (n <= 0) break;
      have += n;
    } else {
      check_scratch();
      waited++;
    }
  }
  atomic_fetch_add(&counters.serial_bytes, have);
  if (have == FRAME && !memcmp(sent, back, FRAME)) return;
  serial_error(have < FRAME ? "did-not-come-back" : "another-frame-came-back", turn, have);
  tcflush(tty, TCIOFLUSH);
}

/* The driver sends nothing before the transmitter's interrupt, so each frame has one; and none has many. */
static void expect_interrupts(uint32_t turn, unsigned long before) {
  unsigned long came = interrupts() - before;
  atomic_fetch_add(&counters.irqs, came);
  if (came >= 1 && came <= 2 * FRAME) return;
  atomic_fetch_add(&counters.irq_errors, 1);
  complain("kind=mtty text=interrupts turn=%u found=%lu", turn, came);
}

static void *mtty(void *unused) {
  (void)unused;
  for (uint32_t turn = 1;; turn++) {
    unsigned long before = interrupts();
    exchange(turn);
    expect_interrupts(turn, before);
    check_scratch();
    set_scratch(stamp(KIND, 1, turn, 0) | 1); /* never what a new card has */
    sleep_us(PAUSE_US);
  }
  return NULL;
}

int mtty_start(void) {
  char card[300], name[32];
  pthread_t thread;
  if (find_pci("0x4348", "0x3253", card, sizeof card) < 0 || find_port(card, name, sizeof name) < 0) return -1;
  if (open_all(card, name) < 0) return -1;
  say("mtty port=%s irq=%u", name, irq);
  pthread_create(&thread, NULL, mtty, NULL);
  return 0;
}
