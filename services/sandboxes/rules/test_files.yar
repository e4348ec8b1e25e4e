rule eicar
{
    meta:
        description = "The file of the EICAR institute that every scanner is tested with"
        reference = "https://www.eicar.org/download-anti-malware-testfile/"
    strings:
        $text = "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
    condition:
        $text at 0 and filesize < 256
}
