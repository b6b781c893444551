// A disk that is slow to say that it has stored something: a Postgres server is started with this library before its C library
// (LD_PRELOAD), and waits in fsync and fdatasync for the microseconds that the file SLOWDISK_DELAY has.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_for_disk(void) {
	const char *path = getenv("SLOWDISK_DELAY");
	FILE *f = path ? fopen(path, "r") : NULL;
	unsigned delay = 0;
	if (f == NULL)
		return;
	if (fscanf(f, "%u", &delay) == 1 && delay > 0)
		usleep(delay);
	fclose(f);
}

int fsync(int fd) {
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
	wait_for_disk();
	return real(fd);
}

int fdatasync(int fd) {
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
	wait_for_disk();
	return real(fd);
}
