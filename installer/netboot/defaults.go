package netboot

import "strings"

// DefaultModules returns the modules that the environment has where the kernel has them: the network
// cards, disks and file systems of servers and of the usual hypervisors. Only those whose device is
// present are loaded on a node, file systems when something is mounted (btrfs last of all: its raid6_pq
// times algorithms for a second).
func DefaultModules() []string {
	return strings.Fields(`
	virtio_pci virtio_net virtio_blk virtio_scsi virtio_rng virtio_balloon virtio_console

	e1000 e1000e igb igbvf igc ixgbe ixgbevf i40e iavf ice e100
	bnx2 bnx2x bnxt_en tg3 mlx4_en mlx4_core mlx5_core r8169 8139cp 8139too sfc sfc_falcon qede
	enic be2net cxgb4 cxgb4vf atlantic vmxnet3 hv_netvsc ena gve mana qlcnic netxen_nic myri10ge
	forcedeth sky2 skge jme alx atl1c atl1e sis900 via_velocity via_rhine pcnet32 ne2k_pci
	nfp liquidio hinic sunhme tehuti xen_netfront
	usbnet cdc_ether cdc_ncm r8152 ax88179_178a asix
	broadcom realtek marvell bcm_phy_lib micrel at803x smsc
	8021q bonding af_packet

	ahci ata_piix ata_generic sata_nv sata_sil sata_sil24 sata_via sata_mv sata_svw sata_promise
	nvme sd_mod sr_mod sg ses enclosure virtio_scsi
	megaraid_sas megaraid_mbox megaraid_mm mpt3sas mpi3mr mptspi mptsas mptfc hpsa smartpqi aacraid
	3w_9xxx 3w_sas arcmsr isci mvsas pm80xx hptiop ips
	qla2xxx lpfc bfa fnic iscsi_tcp
	vmw_pvscsi hv_storvsc hv_vmbus hv_utils xen_blkfront sym53c8xx BusLogic
	xhci_pci ehci_pci ohci_pci uhci_hcd usb_storage uas
	mmc_block sdhci_pci sdhci_acpi vmd

	crc32c_generic crc32c_intel crct10dif_generic crct10dif_common crct10dif_pclmul crc32_generic crc32_pclmul
	ext4 vfat xfs btrfs isofs squashfs overlay loop
	nls_cp437 nls_ascii nls_iso8859_1 nls_utf8
	dm_mod dm_crypt md_mod raid0 raid1 raid10 raid456 efivarfs

	usbhid hid_generic atkbd i8042
	i6300esb iTCO_wdt ipmi_si ipmi_devintf ipmi_msghandler
	`)
}

// DefaultTools returns the programs that the installer runs on a node.
func DefaultTools() []string {
	return strings.Fields("sfdisk wipefs blkid mkfs.ext4 mkfs.vfat mkswap e2fsck fsck.ext4 mount umount busybox")
}

// packageOf returns the Debian package that has a tool, or the tool's name.
func packageOf(tool string) string {
	for _, line := range []string{
		"fdisk: sfdisk fdisk cfdisk",
		"util-linux: wipefs blkid mkswap losetup lsblk blockdev fsck swapon swapoff partx findmnt switch_root dmesg hwclock",
		"mount: mount umount",
		"e2fsprogs: mkfs.ext2 mkfs.ext3 mkfs.ext4 mke2fs e2fsck fsck.ext2 fsck.ext3 fsck.ext4 tune2fs resize2fs e2label dumpe2fs debugfs lsattr chattr",
		"dosfstools: mkfs.vfat mkfs.fat fsck.vfat fsck.fat fatlabel",
		"xfsprogs: mkfs.xfs xfs_repair xfs_growfs xfs_admin",
		"btrfs-progs: mkfs.btrfs btrfs btrfstune",
		"busybox-static: busybox",
		"gdisk: sgdisk gdisk",
		"parted: parted partprobe",
		"cryptsetup-bin: cryptsetup veritysetup integritysetup",
		"lvm2: lvm pvcreate vgcreate lvcreate vgchange pvs vgs lvs",
		"dmsetup: dmsetup",
		"udev: udevadm",
		"zstd: zstd",
		"mdadm: mdadm",
		"efibootmgr: efibootmgr",
	} {
		pkg, tools, _ := strings.Cut(line, ": ")
		for _, t := range strings.Fields(tools) {
			if t == tool {
				return pkg
			}
		}
	}
	return tool
}
