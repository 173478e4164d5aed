# Nothing of one test reaches the next: the kernel's initiator lets go of everything.
nvme disconnect-all
