// The peer of bench/exits.ts: the smallest KVM_RUN loop in C that answers the same guest's accesses. Compiled when the bench runs.
// exits-peer CODE ITERATIONS: runs the flat real-mode code in the file CODE (loaded at 0x1000, with ECX = ITERATIONS) until it writes
// port 0xf4, answers every other access with 0x5a, and prints nanoseconds per exit.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int must(int result, const char *what) {
  if (result >= 0) return result;
  perror(what);
  exit(1);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t run_until_done(int vcpu, struct kvm_run *run) {
  uint64_t exits = 0;
  for (;; exits++) {
    must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    if (run->exit_reason == KVM_EXIT_IO) {
      if (run->io.port == 0xf4) return exits;
      if (run->io.direction == KVM_EXIT_IO_IN) *((uint8_t *)run + run->io.data_offset) = 0x5a;
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
      if (!run->mmio.is_write) run->mmio.data[0] = 0x5a;
    } else {
      fprintf(stderr, "exit reason %u\n", run->exit_reason);
      exit(1);
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
  int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
  uint8_t *ram = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int code = must(open(argv[1], O_RDONLY), argv[1]);
  must((int)read(code, ram + 0x1000, 4096), "read");
  struct kvm_userspace_memory_region region = {.memory_size = 65536, .userspace_addr = (uintptr_t)ram};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
  int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run *run = mmap(0, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rcx = strtoull(argv[2], 0, 10)};
  must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
  uint64_t start = now();
  uint64_t exits = run_until_done(vcpu, run);
  printf("%.1f\n", (double)(now() - start) / (double)exits);
  return 0;
}
