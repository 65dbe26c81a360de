// Uses files in the place of /dev/vfio for tracer.test.ts: `calls ROOT WHAT`. Each WHAT is one way in which an fd is come by, or used.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char group_path[4096], container_path[4096];

static int group(void) { return open(group_path, O_RDWR); }

static void status(int fd)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };

	ioctl(fd, VFIO_GROUP_GET_STATUS, &status);
}

static void *thread(void *fd)
{
	status(*(int *)fd);
	return NULL;
}

/* Everything that a VFIO user does with one fd. */
static void every(void)
{
	char bytes[8] = "ABCDEFGH";
	struct iovec parts[2] = { { bytes, 3 }, { bytes + 3, 5 } };
	struct pollfd polled[2] = { { .fd = 0 }, { .events = POLLIN } };
	int fd = group(), container = open(container_path, O_RDWR), left;
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = 3, .iova = 0x1000, .size = 0x2000 };

	ioctl(fd, VFIO_GROUP_SET_CONTAINER, &container);
	ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, "0000:65:00.0");
	ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
	ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
	ioctl(container, VFIO_IOMMU_MAP_DMA, (void *)-4096);
	ioctl(fd, _IO(VFIO_TYPE, 0x7f), &map);
	ioctl(fd, FIONREAD, &left); /* of another type: not of interest */
	write(fd, "12345678", 8);
	pwrite(fd, bytes, 4, 16);
	pread(fd, bytes, 8, 0);
	lseek(fd, 0, SEEK_SET);
	read(fd, bytes, 3);
	pwritev(fd, parts, 2, 32);
	preadv(fd, parts, 2, 32);
	polled[1].fd = fd;
	poll(polled, 2, 0);
	munmap(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), 4096);
	close(fd);
}

static void logging(int fd)
{
	struct vfio_device_feature_dma_logging_range ranges[2] = { { 0, 0x1000 }, { 0x100000000, 0x2000 } };
	struct { struct vfio_device_feature header; struct vfio_device_feature_dma_logging_control control; } start = {
		{ sizeof(start), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START }, { 4096, 2, 0, (unsigned long)ranges } };

	ioctl(fd, VFIO_DEVICE_FEATURE, &start);
}

static void copies(void)
{
	int fd = group(), second = dup(fd), third = dup2(fd, 50), fourth = dup3(fd, 51, O_CLOEXEC);
	int fifth = fcntl(fd, F_DUPFD_CLOEXEC, 60);

	close(fd);
	status(second);
	status(third);
	status(fourth);
	status(fifth);
	dup2(0, 50); /* 50 is something else now */
	status(50);
	syscall(SYS_close_range, 51, 100, 0);
	status(51);
}

static void send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { "x", 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	sendmsg(socket, &message, 0);
}

static int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	int fd;

	recvmsg(socket, &message, 0);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

static void rights(void)
{
	int sockets[2];

	socketpair(AF_UNIX, SOCK_STREAM, 0, sockets);
	if (fork() == 0) {
		int got = receive_fd(sockets[1]);

		status(got);
		status(receive_fd(sockets[1])); /* /dev/null: not of interest */
		_exit(0);
	}
	send_fd(sockets[0], group());
	send_fd(sockets[0], open("/dev/null", O_RDWR));
	wait(NULL);
}

static void *execute(void *given)
{
	char **argv = given, a[16], b[16];

	snprintf(a, sizeof(a), "%d", group());
	snprintf(b, sizeof(b), "%d", open(group_path, O_RDWR | O_CLOEXEC));
	execl("/proc/self/exe", argv[0], argv[1], "after-exec", a, b, NULL);
	return NULL;
}

static volatile sig_atomic_t caught;
static void on_signal(int signal) { caught = signal; }

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[2] : "";

	if (!strcmp(what, "after-exec")) { /* FD that stays, FD that was closed by exec */
		status(atoi(argv[3]));
		status(atoi(argv[4]));
		return 0;
	}
	if (argc < 3)
		return 99;
	snprintf(group_path, sizeof(group_path), "%s/vfio/4", argv[1]);
	snprintf(container_path, sizeof(container_path), "%s/vfio/vfio", argv[1]);
	if (!strcmp(what, "every")) {
		every();
	} else if (!strcmp(what, "logging")) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/vfio/devices/vfio0", argv[1]);
		logging(open(path, O_RDWR));
	} else if (!strcmp(what, "copies")) {
		copies();
	} else if (!strcmp(what, "rights")) {
		rights();
	} else if (!strcmp(what, "threads")) {
		pthread_t threads[8];
		int fd = group();

		for (int i = 0; i < 8; i++)
			pthread_create(&threads[i], NULL, thread, &fd);
		for (int i = 0; i < 8; i++)
			pthread_join(threads[i], NULL);
	} else if (!strcmp(what, "fork")) {
		int fd = group();

		for (int i = 0; i < 3; i++) {
			if (fork() == 0) {
				status(fd);
				close(fd); /* the parent's stays open */
				status(fd);
				_exit(i);
			}
		}
		while (wait(NULL) > 0)
			;
		status(fd);
	} else if (!strcmp(what, "exec")) {
		int stays = group(), goes = open(group_path, O_RDWR | O_CLOEXEC);
		char a[16], b[16];

		snprintf(a, sizeof(a), "%d", stays);
		snprintf(b, sizeof(b), "%d", goes);
		if (vfork() == 0)
			execl("/proc/self/exe", argv[0], argv[1], "after-exec", a, b, NULL);
		wait(NULL);
		execl("/proc/self/exe", argv[0], argv[1], "after-exec", a, b, NULL);
	} else if (!strcmp(what, "thread-exec")) { /* exec by another thread than the first, which waits */
		pthread_t other;

		pthread_create(&other, NULL, execute, argv);
		for (;;)
			pause();
	} else if (!strcmp(what, "fails")) {
		chdir(argv[1]);
		open("vfio/4", O_RDWR); /* a relative name is the same file */
		open(container_path, O_RDWR | O_CREAT | O_EXCL, 0600);
		open("none", O_RDWR);
	} else if (!strcmp(what, "exit")) {
		return atoi(argv[3]);
	} else if (!strcmp(what, "dies")) {
		int fd = group();

		(void)fd;
		raise(SIGKILL);
	} else if (!strcmp(what, "waits")) {
		signal(SIGUSR1, on_signal);
		close(creat(argv[3], 0600)); /* the handler is there */
		while (!caught)
			usleep(1000);
		return 40 + (caught == SIGUSR1);
	} else if (!strcmp(what, "stops")) {
		pid_t child = fork();
		int how;

		if (child == 0) {
			raise(SIGSTOP);
			status(group());
			_exit(5);
		}
		waitpid(child, &how, WUNTRACED);
		if (!WIFSTOPPED(how))
			return 1;
		kill(child, SIGCONT);
		waitpid(child, &how, 0);
		return WIFEXITED(how) ? WEXITSTATUS(how) : 2;
	} else if (!strcmp(what, "pipe")) { /* a call that waits, and the signal that ends it */
		signal(SIGALRM, on_signal);
		siginterrupt(SIGALRM, 1);
		char path[4096], byte;

		snprintf(path, sizeof(path), "%s/vfio/fifo", argv[1]);
		int fd = open(path, O_RDWR);

		alarm(1);
		return read(fd, &byte, 1) == -1 && errno == EINTR ? 7 : 8;
	} else if (!strcmp(what, "terminal")) { /* an ioctl that gives an fd */
		int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), zero = 0, peer;

		ioctl(master, TIOCSPTLCK, &zero);
		peer = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
		write(peer, "hello", 5);
	}
	return 0;
}
